/* One circuit at full speed, light enough that the relay is what saturates: seals messages into one connection of a relay
 * and counts them on another.
 *
 *     load PID MESSAGE WARMUP SECONDS
 *
 * reads the two ends from standard input, source first, each a line that says where the handshakes got to:
 *     FD SEND_KEY RECV_KEY SEND_NONCE RECV_NONCE STREAM_ID SEND_WINDOW LEFTOVER      (keys and leftover in hex, - for none)
 *
 * Each message is one yamux DATA frame in a Noise record of its own. The source opens all that comes back. The sink
 * follows the frames by decrypting only the 64-byte blocks that hold their headers, and verifies one record in 64 whole.
 * Prints one JSON object, with the CPU seconds that process PID spent meanwhile. */
#define _GNU_SOURCE
#include "records.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 12, BATCH = 256 * 1024, WINDOW = 16 * 1024 * 1024, GRANT = 1024 * 1024, IN = 1024 * 1024, SAMPLE = 64 };
enum { DATA, UPDATE, PING, GOAWAY, SYN = 1, ACK = 2, RST = 8 };

typedef struct {
    int fd;
    half out, in;
    uint32_t id;
    uint64_t window; /* that the relay gave */
    uint8_t *rx, *tx;
    size_t rx_n, tx_start, tx_end, tx_cap;
    uint8_t header[HEADER];
    size_t header_n, left; /* of a frame's payload */
    int left_counts;
    uint64_t received, granted;
} end;

static end ends[2]; /* source, sink */

static uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }

static void put_header(uint8_t *p, int type, int flags, uint32_t id, uint32_t length) {
    uint8_t h[HEADER] = {0, type, 0, flags, id >> 24, id >> 16, id >> 8, id, length >> 24, length >> 16, length >> 8, length};
    memcpy(p, h, HEADER);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Out */

static uint8_t *tx_take(end *e, size_t n) {
    if (e->tx_end + n > e->tx_cap) die("the relay stopped reading");
    uint8_t *p = e->tx + e->tx_end;
    e->tx_end += n;
    return p;
}

static void put_record(end *e, int type, int flags, uint32_t id, uint32_t length, size_t payload) {
    size_t plain = HEADER + payload;
    uint8_t *p = tx_take(e, PREFIX + plain + TAG);
    p[0] = (plain + TAG) >> 8;
    p[1] = plain + TAG;
    put_header(p + PREFIX, type, flags, id, length);
    memset(p + PREFIX + HEADER, 0x5a, payload);
    seal(&e->out, p + PREFIX, plain);
}

static void flush(end *e) {
    while (e->tx_start < e->tx_end) {
        ssize_t n = send(e->fd, e->tx + e->tx_start, e->tx_end - e->tx_start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) die("the relay closed a connection");
        e->tx_start += n;
    }
    e->tx_start = e->tx_end = 0;
}

/* In */

static void block(const uint32_t key[8], uint64_t nonce, uint32_t counter, uint32_t out[16]) {
    uint32_t s[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, key[0], key[1], key[2], key[3], key[4], key[5], key[6],
                      key[7], counter, 0, (uint32_t)nonce, nonce >> 32};
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

/* n bytes of a record's plaintext from offset `at`, and no others */
static void peek(const end *e, const uint8_t *sealed, size_t at, uint8_t *out, size_t n) {
    uint32_t key[8], stream[16];
    size_t have = (size_t)-1;
    memcpy(key, e->in.key, KEY);
    for (size_t i = 0; i < n; i++, at++) {
        if (at / 64 != have) block(key, e->in.nonce, 1 + (uint32_t)(have = at / 64), stream);
        out[i] = sealed[at] ^ ((uint8_t *)stream)[at % 64];
    }
}

static void on_header(end *e) {
    const uint8_t *h = e->header;
    int type = h[1], flags = h[2] << 8 | h[3];
    uint32_t id = get32(h + 4), length = get32(h + 8);
    e->left = type == DATA ? length : 0;
    e->left_counts = type == DATA && id == e->id;
    if (h[0] || type > GOAWAY) die("not a yamux frame");
    if (type == GOAWAY) die("the relay said go-away");
    if (type == PING && flags & SYN) put_record(e, PING, ACK, 0, length, 0);
    if (type <= UPDATE && id == e->id && flags & RST) die("the relay reset the circuit");
    if (type == UPDATE && id == e->id) e->window += length;
    if (type <= UPDATE && id != e->id && flags & SYN) put_record(e, UPDATE, RST, id, 0, 0);
}

static void on_record(end *e, uint8_t *p, size_t n) {
    int whole = e == &ends[0] || e->in.nonce % SAMPLE == 0;
    uint64_t nonce = e->in.nonce;
    if (whole) open_record(&e->in, p, n);
    for (size_t at = 0, take; at < n; at += take) {
        if (e->left) {
            take = e->left < n - at ? e->left : n - at;
            e->left -= take;
            if (e->left_counts) e->received += take;
            continue;
        }
        take = HEADER - e->header_n < n - at ? HEADER - e->header_n : n - at;
        if (whole)
            memcpy(e->header + e->header_n, p + at, take);
        else
            peek(e, p, at, e->header + e->header_n, take);
        e->header_n += take;
        if (e->header_n == HEADER) {
            e->header_n = 0;
            on_header(e);
        }
    }
    e->in.nonce = nonce + 1;
}

static void on_bytes(end *e) {
    size_t at = 0;
    while (e->rx_n - at >= PREFIX) {
        size_t size = e->rx[at] << 8 | e->rx[at + 1];
        if (size < TAG) die("a record without a tag");
        if (e->rx_n - at < PREFIX + size) break;
        on_record(e, e->rx + at + PREFIX, size - TAG);
        at += PREFIX + size;
    }
    memmove(e->rx, e->rx + at, e->rx_n - at);
    e->rx_n -= at;
}

static void receive(end *e) {
    ssize_t n = recv(e->fd, e->rx + e->rx_n, IN - e->rx_n, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) die("the relay closed a connection");
    e->rx_n += n;
    on_bytes(e);
}

static void read_end(end *e) {
    char send_key[80], recv_key[80], *leftover = malloc(4 * IN);
    unsigned long long send_nonce, recv_nonce, window;
    if (scanf("%d %79s %79s %llu %llu %u %llu %4000000s", &e->fd, send_key, recv_key, &send_nonce, &recv_nonce, &e->id,
              &window, leftover) != 8)
        die("cannot read the ends");
    half_init(&e->out, send_key, send_nonce, 1);
    half_init(&e->in, recv_key, recv_nonce, 0);
    e->window = window;
    e->rx = malloc(IN);
    e->tx_cap = 4 * BATCH;
    e->tx = malloc(e->tx_cap);
    if (strcmp(leftover, "-")) {
        e->rx_n = strlen(leftover) / 2;
        unhex(leftover, e->rx, e->rx_n);
        on_bytes(e);
    }
    free(leftover);
}

/* Measuring */

typedef struct {
    int64_t at;
    uint64_t bytes;
    double cpu, user, system, own;
} sample;

static sample take_sample(int pid) {
    sample s = {.at = now_ns(), .bytes = ends[1].received};
    clockid_t clock;
    struct timespec t;
    struct rusage own;
    char path[64], line[4096];
    unsigned long user, system;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t)) die("the relay is gone");
    s.cpu = t.tv_sec + t.tv_nsec / 1e9;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
    line[n] = 0;
    if (f) fclose(f);
    char *rest = strrchr(line, ')');
    if (!rest || sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2) die("stat");
    s.user = (double)user / sysconf(_SC_CLK_TCK);
    s.system = (double)system / sysconf(_SC_CLK_TCK);
    getrusage(RUSAGE_SELF, &own);
    s.own = own.ru_utime.tv_sec + own.ru_stime.tv_sec + (own.ru_utime.tv_usec + own.ru_stime.tv_usec) / 1e6;
    return s;
}

int main(int argc, char **argv) {
    if (argc != 5) die("load PID MESSAGE WARMUP SECONDS");
    int pid = atoi(argv[1]), epoll = epoll_create1(0), began = 0;
    size_t message = atoi(argv[2]);
    double warmup = atof(argv[3]), seconds = atof(argv[4]);
    end *source = &ends[0], *sink = &ends[1];
    sample first = {0}, last;
    uint32_t watched = 0;
    if (message < 1 || message > MAX_PLAIN - HEADER) die("a message fits one record");
    for (int i = 0; i < 2; i++) {
        read_end(&ends[i]);
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, ends[i].fd, &e)) die("epoll_ctl");
    }
    sink->granted = WINDOW;
    put_record(sink, UPDATE, 0, sink->id, WINDOW - 256 * 1024, 0);
    for (int64_t start = now_ns();;) {
        while (source->tx_end + PREFIX + HEADER + message + TAG <= BATCH && source->window >= message) {
            put_record(source, DATA, 0, source->id, message, message);
            source->window -= message;
        }
        if (sink->received + WINDOW >= sink->granted + GRANT) {
            uint32_t grant = sink->received + WINDOW - sink->granted;
            put_record(sink, UPDATE, 0, sink->id, grant, 0);
            sink->granted += grant;
        }
        flush(sink);
        flush(source);
        struct epoll_event change = {.events = EPOLLIN | (source->tx_end ? EPOLLOUT : 0), .data.u32 = 0};
        if (change.events != watched && epoll_ctl(epoll, EPOLL_CTL_MOD, source->fd, &change)) die("epoll_ctl");
        watched = change.events;
        struct epoll_event ready[2];
        int idle = source->tx_end || source->window < message;
        int n = epoll_wait(epoll, ready, 2, idle ? 20 : 0);
        for (int i = 0; i < n; i++)
            if (ready[i].events & ~EPOLLOUT) receive(&ends[ready[i].data.u32]);
        double elapsed = (now_ns() - start) / 1e9;
        if (!began && elapsed >= warmup) {
            first = take_sample(pid);
            began = 1;
        }
        if (elapsed >= warmup + seconds) break;
    }
    last = take_sample(pid);
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"user\": %.2f, \"system\": %.2f, \"load_seconds\": %.3f}\n",
           (unsigned long long)(last.bytes - first.bytes), (last.at - first.at) / 1e9, last.cpu - first.cpu,
           last.user - first.user, last.system - first.system, last.own - first.own);
    return 0;
}
