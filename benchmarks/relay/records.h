/* The records of Noise and of TLS 1.3 on libcrypto, for the load and for the C limit, behind one switch.
 *
 * Noise: a 2-byte length, ciphertext, tag. TLS: 23 3 3, a 2-byte length (authenticated), ciphertext, tag; the last byte of
 * plaintext is the content's type. Here "plain" counts that byte out. */
#ifndef RECORDS_H
#define RECORDS_H

#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TAG = 16, KEY = 32, IV = 12, PREFIX = 2 /* Noise */, MAX_PREFIX = 5, MAX_RECORD = MAX_PREFIX + 65535 };
enum { APPLICATION_DATA = 23, HANDSHAKE = 22 }; /* content types of TLS */

typedef struct {
    const char *name;
    const EVP_CIPHER *(*cipher)(void), *(*blocks)(void); /* `blocks`: its block cipher, where it has one */
    int key, tls, chacha;
    size_t prefix, max_plain;
} format;

static const format formats[] = { /* Noise comes first */
    {"noise", EVP_chacha20_poly1305, NULL, 32, 0, 1, 2, 65535 - TAG},
    {"tls-chacha20", EVP_chacha20_poly1305, NULL, 32, 1, 1, 5, 16384},
    {"tls-aes128", EVP_aes_128_gcm, EVP_aes_128_ecb, 16, 1, 0, 5, 16384},
    {"tls-aes256", EVP_aes_256_gcm, EVP_aes_256_ecb, 32, 1, 0, 5, 16384},
};

typedef struct {
    const format *format;
    EVP_CIPHER_CTX *ctx, *blocks;
    uint8_t key[KEY], iv[IV];
    uint64_t nonce;
} half; /* one direction of one connection */

static inline void die(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static inline void unhex(const char *text, uint8_t *out, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (sscanf(text + 2 * i, "%2hhx", out + i) != 1) die("not hexadecimal");
}

static inline const format *format_of(const char *name) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(formats[i].name, name)) return &formats[i];
    die("no such format of records");
    return NULL;
}

/* `key` in hexadecimal; for TLS its IV follows it. */
static inline void half_init(half *h, const format *f, const char *key, uint64_t nonce, int seals) {
    h->format = f;
    h->nonce = nonce;
    if (strlen(key) != 2 * (size_t)(f->key + (f->tls ? IV : 0))) die("a key of the wrong size");
    unhex(key, h->key, f->key);
    memset(h->iv, 0, IV);
    if (f->tls) unhex(key + 2 * f->key, h->iv, IV);
    h->ctx = EVP_CIPHER_CTX_new();
    if (!EVP_CipherInit_ex(h->ctx, f->cipher(), NULL, h->key, NULL, seals)) die("no such cipher");
    h->blocks = NULL;
    if (seals || !f->blocks) return;
    h->blocks = EVP_CIPHER_CTX_new();
    if (!EVP_EncryptInit_ex(h->blocks, f->blocks(), NULL, h->key, NULL)) die("no such cipher");
}

static inline void nonce_of(const half *h, uint8_t nonce[IV]) {
    memcpy(nonce, h->iv, IV);
    for (int i = 0; i < 8; i++) nonce[4 + i] ^= h->nonce >> 8 * (h->format->tls ? 7 - i : i);
}

static inline size_t overhead(const half *h) { return h->format->prefix + h->format->tls + TAG; }

/* The size of the whole record at p, of which `prefix` bytes are there. */
static inline size_t record_size(const half *h, const uint8_t *p) {
    size_t n = p[h->format->prefix - 2] << 8 | p[h->format->prefix - 1];
    if (n < (size_t)TAG + h->format->tls) die("a record without a tag");
    return h->format->prefix + n;
}

static inline void begin(half *h, const uint8_t *record, int seals) {
    int done;
    uint8_t nonce[IV];
    nonce_of(h, nonce);
    h->nonce++;
    if (!EVP_CipherInit_ex(h->ctx, NULL, NULL, NULL, nonce, seals)) die("nonce");
    if (h->format->tls && !EVP_CipherUpdate(h->ctx, NULL, &done, record, MAX_PREFIX)) die("authenticated data");
}

/* n plain bytes that lie `prefix` behind p become a record at p; returns its size. */
static inline size_t seal(half *h, uint8_t *p, size_t n, uint8_t type) {
    int done;
    const format *f = h->format;
    uint8_t *body = p + f->prefix;
    if (f->tls) {
        memcpy(p, "\x17\x03\x03", 3);
        body[n++] = type;
    }
    p[f->prefix - 2] = (n + TAG) >> 8;
    p[f->prefix - 1] = n + TAG;
    begin(h, p, 1);
    if (!EVP_CipherUpdate(h->ctx, body, &done, body, n) || !EVP_CipherFinal_ex(h->ctx, body + n, &done) ||
        !EVP_CIPHER_CTX_ctrl(h->ctx, EVP_CTRL_AEAD_GET_TAG, TAG, body + n))
        die("seal");
    return f->prefix + n + TAG;
}

/* Decrypts the record at p in place; returns how many plain bytes lie `prefix` behind it, and their type. */
static inline size_t unseal(half *h, uint8_t *p, uint8_t *type) {
    int done;
    uint8_t nothing[TAG], *body = p + h->format->prefix;
    size_t n = record_size(h, p) - h->format->prefix - TAG;
    begin(h, p, 0);
    if (!EVP_CIPHER_CTX_ctrl(h->ctx, EVP_CTRL_AEAD_SET_TAG, TAG, body + n) ||
        !EVP_CipherUpdate(h->ctx, body, &done, body, n) || !EVP_CipherFinal_ex(h->ctx, nothing, &done))
        die("a record does not verify");
    *type = h->format->tls ? body[--n] : APPLICATION_DATA;
    return n;
}

/* One block of ChaCha20's key stream (RFC 8439, section 2.3). */
static inline void chacha_block(const uint8_t *key, const uint8_t *nonce, uint32_t counter, uint32_t out[16]) {
    uint32_t s[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    memcpy(s + 4, key, KEY); /* little-endian machines only */
    s[12] = counter;
    memcpy(s + 13, nonce, IV);
    memcpy(out, s, 64);
#define ROTATED(x, n) ((x) << n | (x) >> (32 - n))
#define QUARTER(a, b, c, d)                                                      \
    out[a] += out[b], out[d] = ROTATED(out[d] ^ out[a], 16), out[c] += out[d],   \
    out[b] = ROTATED(out[b] ^ out[c], 12), out[a] += out[b],                     \
    out[d] = ROTATED(out[d] ^ out[a], 8), out[c] += out[d], out[b] = ROTATED(out[b] ^ out[c], 7)
    for (int i = 0; i < 10; i++) {
        QUARTER(0, 4, 8, 12), QUARTER(1, 5, 9, 13), QUARTER(2, 6, 10, 14), QUARTER(3, 7, 11, 15);
        QUARTER(0, 5, 10, 15), QUARTER(1, 6, 11, 12), QUARTER(2, 7, 8, 13), QUARTER(3, 4, 9, 14);
    }
    for (int i = 0; i < 16; i++) out[i] += s[i];
}

/* n plain bytes from offset `at` of the record at p, which stays as it is; none of the others is decrypted. */
static inline void peek(const half *h, const uint8_t *p, size_t at, uint8_t *out, size_t n) {
    uint32_t stream[16];
    uint8_t nonce[IV], counter[16];
    size_t width = h->format->chacha ? 64 : 16, have = (size_t)-1;
    nonce_of(h, nonce);
    for (size_t i = 0; i < n; i++, at++) {
        if (at / width != have) {
            have = at / width;
            if (h->format->chacha) {
                chacha_block(h->key, nonce, 1 + (uint32_t)have, stream);
            } else { /* GCM's counter starts at 2 (NIST SP 800-38D, section 7.1) */
                int done;
                uint32_t number = have + 2;
                memcpy(counter, nonce, IV);
                for (int k = 0; k < 4; k++) counter[IV + k] = number >> (24 - 8 * k);
                if (!EVP_EncryptUpdate(h->blocks, (uint8_t *)stream, &done, counter, 16)) die("block");
            }
        }
        out[i] = p[h->format->prefix + at] ^ ((uint8_t *)stream)[at % width];
    }
}

/* Buffers of one size. The one given back last is the one lent next, since it is the one in the cache. */
typedef struct {
    size_t size, n, cap;
    uint8_t **free;
} pool;

static inline uint8_t *lend(pool *p) {
    uint8_t *buffer = p->n ? p->free[--p->n] : malloc(p->size);
    if (!buffer) die("out of memory");
    return buffer;
}

static inline void give_back(pool *p, uint8_t *buffer) {
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 64;
        if (!(p->free = realloc(p->free, p->cap * sizeof *p->free))) die("out of memory");
    }
    p->free[p->n++] = buffer;
}

#endif
