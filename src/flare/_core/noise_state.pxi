# The symmetric state of a Noise handshake, on libcrypto's functions. Part of handshake.pyx.

# libcrypto

ctypedef int (*sha_init_fn)(void*) noexcept nogil
ctypedef int (*sha_update_fn)(void*, const void*, size_t) noexcept nogil
ctypedef int (*sha_final_fn)(uint8_t*, void*) noexcept nogil
ctypedef void* (*new_raw_fn)(int, void*, const uint8_t*, size_t) noexcept nogil
ctypedef int (*get_raw_fn)(const void*, uint8_t*, size_t*) noexcept nogil
ctypedef void (*free_fn)(void*) noexcept nogil
ctypedef void* (*ctx_new_fn)(void*, void*) noexcept nogil
ctypedef int (*ctx_fn)(void*) noexcept nogil
ctypedef int (*set_peer_fn)(void*, void*, int) noexcept nogil
ctypedef int (*derive_fn)(void*, uint8_t*, size_t*) noexcept nogil
ctypedef int (*random_fn)(uint8_t*, int) noexcept nogil
ctypedef void (*clear_fn)() noexcept nogil

cdef struct calls:
    sha_init_fn sha_init
    sha_update_fn sha_update
    sha_final_fn sha_final
    new_raw_fn new_private
    new_raw_fn new_public
    get_raw_fn get_public
    free_fn key_free
    ctx_new_fn ctx_new
    free_fn ctx_free
    ctx_fn derive_init
    set_peer_fn set_peer
    derive_fn derive
    random_fn random
    clear_fn clear_errors

cdef calls crypto
cdef bint usable = False


cdef void sha256(
    const uint8_t* a, size_t a_n, const uint8_t* b, size_t b_n, const uint8_t* c, size_t c_n, uint8_t* out
) noexcept nogil:
    cdef uint64_t state[32]  # a SHA256_CTX has 112 bytes
    crypto.sha_init(state)
    crypto.sha_update(state, a, a_n)
    if b_n:
        crypto.sha_update(state, b, b_n)
    if c_n:
        crypto.sha_update(state, c, c_n)
    crypto.sha_final(out, state)


cdef void hmac(
    const uint8_t* key, const uint8_t* a, size_t a_n, const uint8_t* b, size_t b_n, uint8_t* out
) noexcept nogil:
    """HMAC-SHA256 (RFC 2104) under a key of 32 bytes."""
    cdef uint8_t pad[BLOCK]
    cdef uint8_t inner[HASH]
    cdef int i
    memset(pad, 0x36, BLOCK)
    for i in range(KEY):
        pad[i] ^= key[i]
    sha256(pad, BLOCK, a, a_n, b, b_n, inner)
    for i in range(BLOCK):
        pad[i] ^= 0x36 ^ 0x5C
    sha256(pad, BLOCK, inner, HASH, NULL, 0, out)
    flare_forget(pad, BLOCK)


cdef void hkdf(uint8_t* chain, const uint8_t* material, size_t n, uint8_t* second) noexcept nogil:
    """Noise 4.3: both outputs; the first takes the place of `chain`."""
    cdef uint8_t secret[HASH]
    cdef uint8_t one = 1
    cdef uint8_t two = 2
    hmac(chain, material, n, NULL, 0, secret)
    hmac(secret, &one, 1, NULL, 0, chain)
    hmac(secret, chain, HASH, &two, 1, second)
    flare_forget(secret, HASH)


cdef void* derivation(void* private) noexcept nogil:
    """What `exchange` needs of a private key, for one exchange or many. NULL: no memory."""
    cdef void* ctx = crypto.ctx_new(private, NULL)
    if ctx != NULL and crypto.derive_init(ctx) == 1:
        return ctx
    crypto.ctx_free(ctx)
    return NULL


cdef bint exchange(void* ctx, const uint8_t* public, uint8_t* shared) noexcept nogil:
    """X25519. False for a public key of small order (or without memory)."""
    cdef size_t n = KEY
    cdef void* peer = crypto.new_public(EVP_PKEY_X25519, NULL, public, KEY)
    # any 32 bytes are a public key: there is nothing to validate
    cdef bint good = (
        peer != NULL
        and crypto.set_peer(ctx, peer, 0) == 1
        and crypto.derive(ctx, shared, &n) == 1
        and n == KEY
    )
    crypto.key_free(peer)
    if not good:
        crypto.clear_errors()  # they would come up in some later call of ssl's
    return good


# The symmetric state (Noise 5.1 and 5.2)

cdef struct symmetric:
    uint8_t hash[HASH]
    uint8_t chain[HASH]
    uint8_t key[KEY]
    uint64_t nonce


cdef void mix_hash(symmetric* s, const uint8_t* data, size_t n) noexcept nogil:
    sha256(s.hash, HASH, data, n, NULL, 0, s.hash)


cdef bint mix_key(symmetric* s, void* ctx, const uint8_t* public) noexcept nogil:
    """Mix the exchange of a private key (its `derivation`) with `public`."""
    cdef uint8_t shared[KEY]
    cdef bint good = exchange(ctx, public, shared)
    if good:
        hkdf(s.chain, shared, KEY, s.key)
        s.nonce = 0
    flare_forget(shared, KEY)
    return good


cdef bint seal(symmetric* s, uint8_t* data, size_t n) noexcept nogil:
    """In place; the tag goes behind it."""
    cdef aead cipher
    aead_init(&cipher, AEAD_CHACHA20_POLY1305, s.key)
    cipher.nonce = s.nonce
    cdef bint good = aead_seal_ad(&cipher, s.hash, HASH, data, n) == AEAD_OK
    aead_free(&cipher)
    s.nonce += 1
    mix_hash(s, data, n + TAG)
    return good


cdef bint unseal(symmetric* s, uint8_t* data, size_t n) noexcept nogil:
    """In place; `n` counts the tag. False: it was not sealed under this key and transcript."""
    cdef aead cipher
    cdef uint8_t before[HASH]
    memcpy(before, s.hash, HASH)
    mix_hash(s, data, n)
    aead_init(&cipher, AEAD_CHACHA20_POLY1305, s.key)
    cipher.nonce = s.nonce
    cdef bint good = aead_open_ad(&cipher, before, HASH, data, n) == AEAD_OK
    aead_free(&cipher)
    s.nonce += 1
    return good
