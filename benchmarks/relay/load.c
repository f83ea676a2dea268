/* Circuits at full speed, light enough that the relay is what saturates: seals messages into connections of a relay and
 * counts them on others; beside them, when asked for, circuits on which one message at a time goes to and fro.
 *
 *     load PID MESSAGE WARMUP SECONDS CAP...
 *
 * reads circuits from standard input, each three words and lines: "bulk FORMAT" or "echo FORMAT", then its two ends, source
 * first, each a line that says where the handshakes got to:
 *     FD SEND_KEY RECV_KEY SEND_NONCE RECV_NONCE STREAM_ID SEND_WINDOW LEFTOVER      (keys and leftover in hex, - for none)
 * For each CAP in turn, which is how many messages a circuit may have under way (0: as many as windows allow), it lets
 * WARMUP seconds pass, measures for SECONDS, or up to 5 more while a circuit has had nothing, and prints one JSON object,
 * with the CPU seconds that process PID spent.
 *
 * A message is one yamux DATA frame, in a record of its own or, where it does not fit one, in as many as it takes. What
 * comes back to a source is decrypted. The sink follows the frames by decrypting only the blocks that hold their headers,
 * and verifies one record in 64 whole. On an echo circuit everything is; a message of 1 KiB leaves up to a millisecond,
 * evenly spread, after the last came back, and the ends of echo circuits are looked at before anything else is done. */
#define _GNU_SOURCE
#include "records.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 12, BATCH = 256 * 1024, SMALL_BATCH = 64 * 1024, MAX_MESSAGE = 65536, IN = 1024 * 1024, SMALL_IN = 128 * 1024 };
enum { FIRST = 256 * 1024, WINDOW = 16 * 1024 * 1024, GRANT = 1024 * 1024, SAMPLE = 64, ECHO = 1024, GAP_NS = 1000000 };
enum { EVENTS = 256, TRIPS = 1 << 20, TX = BATCH + 2 * MAX_RECORD, PATIENCE = 5 /* s, with circuits on which nothing arrives */ };
enum { DATA, UPDATE, PING, GOAWAY, SYN = 1, ACK = 2, RST = 8 };
typedef enum { SOURCE, SINK, PINGER, PONGER } role;

typedef struct {
    int fd, index, queued, blocked;
    role role;
    half out, in;
    uint32_t id;
    uint64_t window;        /* that the relay gave */
    uint8_t *tx, *rest;     /* lent while there is something in it; what of a record has come */
    size_t tx_start, tx_end, rest_n;
    uint8_t header[HEADER];
    size_t header_n, left; /* of a frame's payload */
    int left_counts;
    uint64_t sent, received, granted, first;
    int64_t at; /* when the message left that has not come back, or 0; then `next` says when another may */
    int64_t next;
} end;

static end *ends; /* an even one and the one behind it make a circuit */
static int count, echoes, epoll, urgent;
static size_t message;
static uint64_t cap;
static int *queue, queue_n; /* sources that may have more to send */
static pool outgoing = {.size = TX}, rests = {.size = MAX_RECORD};
static uint8_t arrived[IN + MAX_RECORD];
static uint32_t trips[TRIPS], trips_n; /* round trips of the echo circuits, ns */

static uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Out */

static void put_frame(end *e, int type, int flags, uint32_t length, size_t payload) {
    uint32_t id = type == PING ? 0 : e->id;
    uint8_t h[HEADER] = {0, type, 0, flags, id >> 24, id >> 16, id >> 8, id, length >> 24, length >> 16, length >> 8, length};
    size_t prefix = e->out.format->prefix, frame = HEADER + payload;
    if (!e->tx) e->tx = lend(&outgoing);
    for (size_t at = 0; at < frame;) {
        size_t n = frame - at < e->out.format->max_plain ? frame - at : e->out.format->max_plain;
        if (e->tx_end + n + overhead(&e->out) > TX) die("the relay stopped reading");
        uint8_t *plain = e->tx + e->tx_end + prefix;
        memset(plain, 0x5a, n);
        if (at == 0) memcpy(plain, h, HEADER);
        e->tx_end += seal(&e->out, plain - prefix, n, APPLICATION_DATA);
        at += n;
    }
}

static void flush(end *e) {
    while (e->tx_start < e->tx_end) {
        ssize_t n = send(e->fd, e->tx + e->tx_start, e->tx_end - e->tx_start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) die("the relay closed a connection");
        if (n < 0) break;
        e->tx_start += n;
    }
    int blocked = e->tx_start < e->tx_end;
    if (!blocked && e->tx) {
        give_back(&outgoing, e->tx);
        e->tx = NULL;
        e->tx_start = e->tx_end = 0;
    }
    struct epoll_event change = {.events = EPOLLIN | (blocked ? EPOLLOUT : 0), .data.u32 = e->index};
    if (blocked != e->blocked && epoll_ctl(epoll, EPOLL_CTL_MOD, e->fd, &change)) die("epoll_ctl");
    e->blocked = blocked;
}

static int may_send(const end *e) {
    return !e->blocked && e->window >= message && (!cap || e->sent + message <= ends[e->index ^ 1].received + cap * message);
}

static void enqueue(end *e) {
    if (e->role != SOURCE || e->queued || !may_send(e)) return;
    e->queued = 1;
    queue[queue_n++] = e->index;
}

static void feed(end *e) {
    size_t batch = echoes ? SMALL_BATCH : BATCH;
    for (size_t n = 0; n < batch && may_send(e); n += HEADER + message + overhead(&e->out)) {
        put_frame(e, DATA, 0, message, message);
        e->window -= message;
        e->sent += message;
    }
    flush(e);
    enqueue(e);
}

static void send_echo(end *e) {
    if (e->window < ECHO) return;
    put_frame(e, DATA, 0, ECHO, ECHO);
    e->window -= ECHO;
    e->sent += ECHO;
    flush(e);
}

/* In */

static void on_header(end *e) {
    const uint8_t *h = e->header;
    int type = h[1], flags = h[2] << 8 | h[3];
    uint32_t id = get32(h + 4), length = get32(h + 8);
    e->left = type == DATA ? length : 0;
    e->left_counts = type == DATA && id == e->id;
    if (h[0] || type > GOAWAY) die("not a yamux frame");
    if (type == GOAWAY) die("the relay said go-away");
    if (type <= UPDATE && id == e->id && flags & RST) die("the relay reset a circuit");
    if (type == UPDATE && id == e->id) e->window += length;
    if (type == PING && flags & SYN) put_frame(e, PING, ACK, length, 0);
    if (type <= UPDATE && id != e->id && flags & SYN) { /* a stream of the relay's own, which is refused */
        uint32_t circuit = e->id;
        e->id = id;
        put_frame(e, UPDATE, RST, 0, 0);
        e->id = circuit;
    }
}

static void on_record(end *e, uint8_t *p) {
    uint64_t nonce = e->in.nonce;
    size_t prefix = e->in.format->prefix, n = record_size(&e->in, p) - overhead(&e->in);
    int whole = e->role != SINK || nonce % SAMPLE == 0;
    uint8_t type = APPLICATION_DATA;
    if (whole)
        n = unseal(&e->in, p, &type);
    else if (e->in.format->tls)
        peek(&e->in, p, n, &type, 1);
    for (size_t at = 0, take; type == APPLICATION_DATA && at < n; at += take) {
        if (e->left) {
            take = e->left < n - at ? e->left : n - at;
            e->left -= take;
            if (e->left_counts) e->received += take;
            continue;
        }
        take = HEADER - e->header_n < n - at ? HEADER - e->header_n : n - at;
        if (whole)
            memcpy(e->header + e->header_n, p + prefix + at, take);
        else
            peek(&e->in, p, at, e->header + e->header_n, take);
        e->header_n += take;
        if (e->header_n == HEADER) {
            e->header_n = 0;
            on_header(e);
        }
    }
    if (type != APPLICATION_DATA && type != HANDSHAKE) die("the relay sent an alert");
    e->in.nonce = nonce + 1;
}

/* n bytes at p, which begin a record. */
static void on_bytes(end *e, uint8_t *p, size_t n) {
    size_t size;
    for (; n >= e->in.format->prefix && n >= (size = record_size(&e->in, p)); p += size, n -= size) on_record(e, p);
    if (n && !e->rest) e->rest = lend(&rests);
    if (!n && e->rest) {
        give_back(&rests, e->rest);
        e->rest = NULL;
    }
    if (n) memcpy(e->rest, p, n);
    e->rest_n = n;
    if (e->role != SOURCE && e->received + WINDOW >= e->granted + GRANT) {
        uint32_t grant = e->received + WINDOW - e->granted;
        put_frame(e, UPDATE, 0, grant, 0);
        e->granted += grant;
    }
}

static void after_bytes(end *e) {
    uint64_t echoed = e->received / ECHO * ECHO;
    if (e->role == PONGER && echoed > e->sent) send_echo(e);
    if (e->role == PINGER && e->at && echoed >= e->sent) {
        int64_t now = now_ns();
        if (trips_n < TRIPS) trips[trips_n++] = now - e->at;
        e->at = 0;
        e->next = now + rand() % GAP_NS;
    }
    if (e->tx && !e->blocked) flush(e);
    enqueue(e->role == SINK ? &ends[e->index ^ 1] : e);
}

static void receive(end *e) {
    if (e->rest_n) memcpy(arrived, e->rest, e->rest_n);
    ssize_t n = recv(e->fd, arrived + e->rest_n, echoes ? SMALL_IN : IN, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) die("the relay closed a connection");
    on_bytes(e, arrived, e->rest_n + n);
    after_bytes(e);
}

static void look_at_echoes(void) {
    struct epoll_event ready[EVENTS];
    if (!echoes) return;
    int n = epoll_wait(urgent, ready, EVENTS, 0);
    for (int i = 0; i < n; i++) receive(&ends[ready[i].data.u32]);
    int64_t now = now_ns();
    for (int i = 0; i < count; i += 2) {
        end *e = &ends[i];
        if (e->role != PINGER || e->at || now < e->next) continue;
        e->at = now;
        send_echo(e);
    }
}

/* Setting up */

static void read_end(end *e, const format *f) {
    char send_key[120], recv_key[120], *leftover = malloc(2 * IN);
    unsigned long long send_nonce, recv_nonce, window;
    if (scanf("%d %119s %119s %llu %llu %u %llu %2000000s", &e->fd, send_key, recv_key, &send_nonce, &recv_nonce, &e->id,
              &window, leftover) != 8)
        die("cannot read the ends");
    half_init(&e->out, f, send_key, send_nonce, 1);
    half_init(&e->in, f, recv_key, recv_nonce, 0);
    e->window = window;
    e->granted = e->role == SOURCE ? UINT64_MAX / 2 : FIRST;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = e->index};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, e->fd, &event)) die("epoll_ctl");
    if (e->role >= PINGER && epoll_ctl(urgent, EPOLL_CTL_ADD, e->fd, &event)) die("epoll_ctl");
    size_t n = strcmp(leftover, "-") ? strlen(leftover) / 2 : 0;
    unhex(leftover, arrived, n);
    on_bytes(e, arrived, n);
    flush(e);
    free(leftover);
}

static void read_circuits(void) {
    char kind[8], name[20];
    int room = 0;
    while (scanf("%7s %19s", kind, name) == 2) {
        int echo = !strcmp(kind, "echo");
        echoes += echo;
        if (count + 2 > room) {
            room = room ? 2 * room : 64;
            if (!(ends = realloc(ends, room * sizeof *ends)) || !(queue = realloc(queue, room * sizeof *queue))) die("memory");
        }
        for (int i = 0; i < 2; i++) {
            memset(&ends[count + i], 0, sizeof *ends);
            ends[count + i].index = count + i;
            ends[count + i].role = (echo ? PINGER : SOURCE) + i;
            read_end(&ends[count + i], format_of(name));
        }
        count += 2;
    }
    if (!count) die("no circuits");
}

/* Measuring */

typedef struct {
    int64_t at;
    uint64_t bytes;
    double cpu, user, system, own;
} sample;

static sample take_sample(int pid) {
    sample s = {.at = now_ns()};
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
    for (int i = 1; i < count; i += 2)
        if (ends[i].role == SINK) s.bytes += ends[i].received;
    return s;
}

static void print(const sample *first, const sample *last) {
    const char *comma = "";
    printf("{\"cap\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"user\": %.2f, \"system\": %.2f, \"load_seconds\": %.3f",
           (unsigned long long)cap, (unsigned long long)(last->bytes - first->bytes), (last->at - first->at) / 1e9,
           last->cpu - first->cpu, last->user - first->user, last->system - first->system, last->own - first->own);
    printf(", \"per_circuit\": [");
    for (int i = 1; i < count; i += 2)
        if (ends[i].role == SINK) printf("%s%llu", comma, (unsigned long long)(ends[i].received - ends[i].first)), comma = ", ";
    printf("], \"round_trips_ns\": [");
    comma = "";
    for (uint32_t i = 0; i < trips_n; i++) printf("%s%u", comma, trips[i]), comma = ", ";
    printf("]}\n");
    fflush(stdout);
}

static int nothing_yet(void) {
    for (int i = 1; i < count; i += 2)
        if (ends[i].role == SINK && ends[i].received == ends[i].first) return 1;
    return echoes && !trips_n;
}

static void turn(void) {
    static int pending[1 << 16];
    struct epoll_event ready[EVENTS];
    look_at_echoes();
    int n = epoll_wait(epoll, ready, EVENTS, queue_n || echoes ? 0 : 20);
    for (int i = 0; i < n; i++) {
        end *e = &ends[ready[i].data.u32];
        if (ready[i].events & EPOLLOUT) {
            flush(e);
            enqueue(e);
        }
        if (ready[i].events & ~EPOLLOUT) receive(e);
        look_at_echoes();
    }
    int waiting = queue_n;
    memcpy(pending, queue, waiting * sizeof *queue);
    queue_n = 0;
    for (int i = 0; i < waiting; i++) {
        ends[pending[i]].queued = 0;
        feed(&ends[pending[i]]);
        look_at_echoes();
    }
}

int main(int argc, char **argv) {
    if (argc < 6) die("load PID MESSAGE WARMUP SECONDS CAP...");
    int pid = atoi(argv[1]);
    double warmup = atof(argv[3]), seconds = atof(argv[4]);
    message = atoi(argv[2]);
    if (message < 1 || message > MAX_MESSAGE) die("messages have 1 to 65536 bytes");
    epoll = epoll_create1(0);
    urgent = epoll_create1(0);
    read_circuits();
    if (count > 1 << 16) die("too many circuits");
    for (int i = 5; i < argc; i++) {
        cap = atoi(argv[i]);
        for (int k = 0; k < count; k++) enqueue(&ends[k]);
        int64_t start = now_ns();
        while ((now_ns() - start) / 1e9 < warmup) turn();
        trips_n = 0;
        for (int k = 0; k < count; k++) ends[k].first = ends[k].received;
        sample first = take_sample(pid);
        for (double past = 0; past < seconds || (nothing_yet() && past < seconds + PATIENCE);) {
            turn();
            past = (now_ns() - first.at) / 1e9;
        }
        sample last = take_sample(pid);
        print(&first, &last);
    }
}
