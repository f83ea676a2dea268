/* What a peer needs to be let in: an Ed25519 identity, what identify tells of it, and the initiator's side of
   Noise_XX_25519_ChaChaPoly_SHA256. It serves a load: it checks no signature, and ephemeral keys are used again. */
#ifndef INITIATOR_H
#define INITIATOR_H

#include "records.h"
#include <openssl/hmac.h>
#include <openssl/sha.h>

enum { HASH = 32, SIGNATURE = 64, PEER_ID = 38, PUBLIC_KEY = 36, EPHEMERALS = 64 };

typedef struct {
    EVP_PKEY *key;
    uint8_t public[KEY];
} pair;

typedef struct {
    uint8_t payload[256], *identify; /* the Noise payload; the framed Identify message */
    int payload_n, identify_n;
} identity;

typedef struct {
    uint8_t hash[HASH], chain[HASH], key[KEY];
    uint64_t nonce;
    const pair *ephemeral;
    EVP_CIPHER_CTX *ctx;
} symmetric;

static pair ephemerals[EPHEMERALS], static_pair;

static pair make_pair(void) {
    pair p;
    size_t n = KEY;
    p.key = EVP_PKEY_Q_keygen(NULL, NULL, "X25519");
    if (!p.key || !EVP_PKEY_get_raw_public_key(p.key, p.public, &n)) die("no X25519");
    return p;
}

static void make_pairs(void) {
    static_pair = make_pair();
    for (int i = 0; i < EPHEMERALS; i++) ephemerals[i] = make_pair();
}

/* Writing protobuf */

static uint8_t *put_varint(uint8_t *p, uint64_t v) {
    for (; v >= 0x80; v >>= 7) *p++ = v | 0x80;
    *p++ = v;
    return p;
}

static uint8_t *put_bytes(uint8_t *p, int field, const void *data, int n) {
    *p++ = field << 3 | 2;
    p = put_varint(p, n);
    memcpy(p, data, n);
    return p + n;
}

static uint8_t *put_framed(uint8_t *p, const void *data, int n) {
    p = put_varint(p, n);
    memcpy(p, data, n);
    return p + n;
}

static void sign(EVP_PKEY *key, const uint8_t *data, int n, uint8_t *out) {
    size_t size = SIGNATURE;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (!EVP_DigestSignInit(ctx, NULL, NULL, NULL, key) || !EVP_DigestSign(ctx, out, &size, data, n)) die("sign");
    EVP_MD_CTX_free(ctx);
}

/* An identity that says about itself what a usual peer does (some 700 bytes, with a signed record of two addresses). */
static void make_identity(identity *who, int number) {
    static const char *protocols[] = {"/ipfs/id/1.0.0",
                                      "/ipfs/id/push/1.0.0",
                                      "/ipfs/ping/1.0.0",
                                      "/libp2p/circuit/relay/0.2.0/stop",
                                      "/libp2p/dcutr",
                                      "/libp2p/autonat/1.0.0",
                                      "/chat/1.0.0",
                                      "/echo/1.0.0"};
    static const char domain[] = "libp2p-peer-record", type[] = {0x03, 0x01};
    uint8_t key[PUBLIC_KEY] = {0x08, 0x01, 0x12, 0x20}, id[PEER_ID] = {0x00, PUBLIC_KEY}, signature[SIGNATURE];
    uint8_t text[24 + KEY] = "noise-libp2p-static-key:", addr[2][8] = {{4, 10, 1, 2, 3, 6, 0x0f, 0xa1}};
    uint8_t record[256], envelope[512], signed_over[512], message[2048], info[16], *p, *q;
    size_t n = KEY;
    EVP_PKEY *signer = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    if (!signer || !EVP_PKEY_get_raw_public_key(signer, key + 4, &n)) die("no Ed25519");
    memcpy(id + 2, key, PUBLIC_KEY);

    memcpy(text + 24, static_pair.public, KEY);
    sign(signer, text, sizeof text, signature);
    p = put_bytes(who->payload, 1, key, PUBLIC_KEY);
    p = put_bytes(p, 2, signature, SIGNATURE);
    p = put_bytes(p, 4, "\x12\x0c/yamux/1.0.0", 14);
    who->payload_n = p - who->payload;

    memcpy(addr[0] + 2, &number, 3);
    memcpy(addr[1], addr[0], 8);
    addr[1][1] = 100;
    p = put_bytes(record, 1, id, PEER_ID);
    *p++ = 0x10;
    p = put_varint(p, 1700000000000 + number);
    for (int i = 0; i < 2; i++) {
        q = put_bytes(info, 1, addr[i], 8);
        p = put_bytes(p, 3, info, q - info);
    }
    q = put_framed(signed_over, domain, sizeof domain - 1);
    q = put_framed(q, type, sizeof type);
    q = put_framed(q, record, p - record);
    sign(signer, signed_over, q - signed_over, signature);
    q = put_bytes(envelope, 1, key, PUBLIC_KEY);
    q = put_bytes(q, 2, type, sizeof type);
    q = put_bytes(q, 3, record, p - record);
    q = put_bytes(q, 5, signature, SIGNATURE);

    p = put_bytes(message, 1, key, PUBLIC_KEY);
    for (int i = 0; i < 2; i++) p = put_bytes(p, 2, addr[i], 8);
    for (size_t i = 0; i < sizeof protocols / sizeof *protocols; i++)
        p = put_bytes(p, 3, protocols[i], strlen(protocols[i]));
    p = put_bytes(p, 4, "\x04\x7f\x00\x00\x01\x06\x0f\xa1", 8);
    p = put_bytes(p, 5, "ipfs/0.1.0", 10);
    p = put_bytes(p, 6, "load/1.0.0", 10);
    p = put_bytes(p, 8, envelope, q - envelope);
    who->identify = malloc(p - message + 3);
    who->identify_n = put_framed(who->identify, message, p - message) - who->identify;
    EVP_PKEY_free(signer);
}

/* Noise 5.1 and 5.2 */

static void mix_hash(symmetric *s, const uint8_t *data, int n) {
    uint8_t joined[HASH + 4096];
    if (n > 4096) die("a handshake message of that size");
    memcpy(joined, s->hash, HASH);
    if (n) memcpy(joined + HASH, data, n);
    SHA256(joined, HASH + n, s->hash);
}

static void hkdf(const uint8_t *chain, const uint8_t *material, int n, uint8_t *first, uint8_t *second) {
    uint8_t secret[HASH], more[HASH + 1];
    HMAC(EVP_sha256(), chain, HASH, material, n, secret, NULL);
    HMAC(EVP_sha256(), secret, HASH, (const uint8_t *)"\x01", 1, more, NULL);
    more[HASH] = 2;
    HMAC(EVP_sha256(), secret, HASH, more, HASH + 1, second, NULL);
    memcpy(first, more, HASH);
}

static void mix_key(symmetric *s, EVP_PKEY *private, const uint8_t *public) {
    uint8_t shared[KEY];
    size_t n = KEY;
    EVP_PKEY *peer = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, public, KEY);
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(private, NULL);
    if (!EVP_PKEY_derive_init(ctx) || !EVP_PKEY_derive_set_peer(ctx, peer) || !EVP_PKEY_derive(ctx, shared, &n))
        die("X25519");
    EVP_PKEY_CTX_free(ctx);
    EVP_PKEY_free(peer);
    hkdf(s->chain, shared, KEY, s->chain, s->key);
    s->nonce = 0;
}

/* Seals or opens n bytes at p in place, their tag behind them, and mixes the ciphertext. */
static void protect(symmetric *s, uint8_t *p, int n, int seals) {
    int done;
    uint8_t iv[12] = {0}, *tag = p + n, end[HASH];
    memcpy(iv + 4, &s->nonce, 8);
    s->nonce++;
    memcpy(end, s->hash, HASH);
    if (!seals) mix_hash(s, p, n + TAG);
    if (!EVP_CipherInit_ex(s->ctx, EVP_chacha20_poly1305(), NULL, s->key, iv, seals) ||
        (!seals && !EVP_CIPHER_CTX_ctrl(s->ctx, EVP_CTRL_AEAD_SET_TAG, TAG, tag)) ||
        !EVP_CipherUpdate(s->ctx, NULL, &done, end, HASH) || !EVP_CipherUpdate(s->ctx, p, &done, p, n) ||
        !EVP_CipherFinal_ex(s->ctx, end, &done) ||
        (seals && !EVP_CIPHER_CTX_ctrl(s->ctx, EVP_CTRL_AEAD_GET_TAG, TAG, tag)))
        die("the relay's handshake does not decrypt");
    if (seals) mix_hash(s, p, n + TAG);
}

/* The first message, without its length. */
static const uint8_t *noise_begin(symmetric *s, int number) {
    static EVP_CIPHER_CTX *ctx;
    static const uint8_t name[] = "Noise_XX_25519_ChaChaPoly_SHA256";
    if (!ctx) ctx = EVP_CIPHER_CTX_new();
    s->ctx = ctx;
    s->ephemeral = &ephemerals[number % EPHEMERALS];
    memcpy(s->chain, name, HASH);
    SHA256(name, HASH, s->hash);
    mix_hash(s, s->ephemeral->public, KEY);
    mix_hash(s, NULL, 0);
    return s->ephemeral->public;
}

/* Takes the second message, writes the third and both record keys (hexadecimal, as half_init wants them). The result is
   the third's size; *early tells whether the responder named its multiplexers. */
static int noise_finish(symmetric *s, uint8_t *in, int n, const identity *who, uint8_t *out, char keys[2][2 * KEY + 1],
                        int *early) {
    uint8_t *at = in + KEY + KEY + TAG, secrets[2][KEY];
    int payload_n = n - 2 * KEY - 2 * TAG;
    if (payload_n < 0) die("a second message that is too short");
    mix_hash(s, in, KEY);
    mix_key(s, s->ephemeral->key, in);
    protect(s, in + KEY, KEY, 0);
    mix_key(s, s->ephemeral->key, in + KEY);
    protect(s, at, payload_n, 0);
    *early = memmem(at, payload_n, "/yamux/1.0.0", 12) != NULL;
    memcpy(out, static_pair.public, KEY);
    protect(s, out, KEY, 1);
    mix_key(s, static_pair.key, in);
    memcpy(out + KEY + TAG, who->payload, who->payload_n);
    protect(s, out + KEY + TAG, who->payload_n, 1);
    hkdf(s->chain, NULL, 0, secrets[0], secrets[1]);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < KEY; j++) sprintf(keys[i] + 2 * j, "%02x", secrets[i][j]);
    return KEY + TAG + who->payload_n + TAG;
}

#endif
