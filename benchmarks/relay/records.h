/* Noise records on libcrypto, for the load and for the C limit: a 2-byte length, ciphertext, a 16-byte tag. */
#ifndef RECORDS_H
#define RECORDS_H

#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PREFIX = 2, TAG = 16, KEY = 32, MAX_PLAIN = 65535 - TAG };

typedef struct {
    EVP_CIPHER_CTX *ctx;
    uint8_t key[KEY];
    uint64_t nonce;
} half; /* one direction of one connection */

static void die(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void unhex(const char *text, uint8_t *out, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (sscanf(text + 2 * i, "%2hhx", out + i) != 1) die("not hexadecimal");
}

static void half_init(half *h, const char *key, uint64_t nonce, int seals) {
    unhex(key, h->key, KEY);
    h->nonce = nonce;
    h->ctx = EVP_CIPHER_CTX_new();
    if (!EVP_CipherInit_ex(h->ctx, EVP_chacha20_poly1305(), NULL, h->key, NULL, seals)) die("no ChaCha20-Poly1305");
}

static void next_nonce(half *h, int seals) {
    uint8_t iv[12] = {0};
    memcpy(iv + 4, &h->nonce, 8); /* little-endian machines only */
    h->nonce++;
    if (!EVP_CipherInit_ex(h->ctx, NULL, NULL, NULL, iv, seals)) die("nonce");
}

/* n bytes at p in place; the tag goes behind them. */
static void seal(half *h, uint8_t *p, int n) {
    int done;
    next_nonce(h, 1);
    if (!EVP_CipherUpdate(h->ctx, p, &done, p, n) || !EVP_CipherFinal_ex(h->ctx, p + n, &done) ||
        !EVP_CIPHER_CTX_ctrl(h->ctx, EVP_CTRL_AEAD_GET_TAG, TAG, p + n))
        die("seal");
}

/* n bytes of plaintext at p in place, their tag behind them. */
static void open_record(half *h, uint8_t *p, int n) {
    int done;
    uint8_t nothing[TAG];
    next_nonce(h, 0);
    if (!EVP_CIPHER_CTX_ctrl(h->ctx, EVP_CTRL_AEAD_SET_TAG, TAG, p + n) || !EVP_CipherUpdate(h->ctx, p, &done, p, n) ||
        !EVP_CipherFinal_ex(h->ctx, nothing, &done))
        die("a record does not verify");
}

#endif
