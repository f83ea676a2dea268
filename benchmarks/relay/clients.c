/* Many peers of one relay: each connects, secures, identifies both ways, reserves a place, and stays.
 *
 *     clients IPV4 PORT
 *
 * reads commands, a line each, and answers:
 *     open COUNT PARALLEL   so many more peers, so many of them at once     {"ready": N}, once they have identities, and
 *                                                                           {"open": N, "failed": N, "seconds": S}
 *     close                 all of them                                     {"open": 0}
 *     count                 how many are open still                         {"open": N}
 * and serves what the relay asks meanwhile (yamux pings, identify, ping). It ends with its standard input.
 *
 * A peer counts as open when the relay answered RESERVE with OK, has said who it is to the end, and was told so too. As
 * the peers that are out there do, it waits for the answer to each security protocol it proposes, identifies itself in
 * answer to the relay's own stream, and proposes and asks RESERVE in one message. Peers come from 127.0.1.x, 128 of
 * them in turn. */
#define _GNU_SOURCE
#include "initiator.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 12, SOURCES = 128, STREAMS = 12, ROOM = 4096, PATIENCE = 30, OK = 100 };
enum { DATA, UPDATE, PING, GOAWAY, SYN = 1, ACK = 2, FIN = 4, RST = 8 };
enum { IDENTIFY = 1, HOP = 3 }; /* streams of ours */
enum state { GREETING, SECURING, CHOOSING, OPEN, GONE };

typedef struct {
    uint32_t id; /* 0: free */
    uint8_t *rx;
    int rx_n, acked, greeted, echoes, ended;
} stream;

typedef struct {
    int fd, number, in_n, plain_n, reserved, known, told, counted;
    enum state state;
    uint8_t *in, *plain; /* read and not decrypted; decrypted and not parsed */
    half seals, opens;
    symmetric *noise;
    stream streams[STREAMS];
} peer;

static struct sockaddr_in relay;
static peer **peers;
static identity *identities;
static int poller, total, started, open_now, failed, busy;
static int64_t last_news;

static const char header[] = "\x13/multistream/1.0.0\n";
#define GREETING_TEXT "\x13/multistream/1.0.0\n"
static const char noise_proposal[] = GREETING_TEXT "\x07/noise\n", yamux_proposal[] = GREETING_TEXT "\x0d/yamux/1.0.0\n";
static const char identify_proposal[] = GREETING_TEXT "\x0f/ipfs/id/1.0.0\n";
static const char hop_proposal[] = GREETING_TEXT "\x20/libp2p/circuit/relay/0.2.0/hop\n"
                                                 "\x02\x08"; /* and RESERVE: type 0, whose byte follows */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void gone(peer *p, const char *why) {
    if (p->state == GONE) return;
    if (p->counted) open_now--;
    else if (busy--, !failed++) fprintf(stderr, "peer %d: %s\n", p->number, why); /* one speaks for all */
    p->state = GONE;
    close(p->fd);
}

/* Out: a peer has so little to say that its socket always takes it. */

static void put(peer *p, const void *data, int n) {
    if (p->state != GONE && send(p->fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT) != n) gone(p, "the relay reads no more");
}

static void put_record(peer *p, const void *data, int n) {
    uint8_t out[PREFIX + ROOM + TAG];
    memcpy(out + PREFIX, data, n);
    put(p, out, seal(&p->seals, out, n, APPLICATION_DATA));
}

static void put_frame(peer *p, int type, int flags, uint32_t id, uint32_t length, const void *data, int n) {
    uint8_t out[ROOM] = {0, type, 0, flags};
    uint32_t big_id = htonl(id), big_length = htonl(length);
    memcpy(out + 4, &big_id, 4);
    memcpy(out + 8, &big_length, 4);
    memcpy(out + HEADER, data, n);
    put_record(p, out, HEADER + n);
}

static void say(peer *p, stream *s, int flags, const void *data, int n) {
    if (!s->acked) flags |= s->id % 2 ? SYN : ACK;
    s->acked = 1;
    put_frame(p, DATA, flags, s->id, n, data, n);
}

/* Streams */

static stream *find(peer *p, uint32_t id) {
    for (int i = 0; i < STREAMS; i++)
        if (p->streams[i].id == id) return &p->streams[i];
    return NULL;
}

static stream *make(peer *p, uint32_t id) {
    stream *s = find(p, 0);
    if (!s) return gone(p, "more streams than expected"), NULL;
    *s = (stream){.id = id, .rx = malloc(ROOM)};
    return s;
}

static void drop(stream *s) {
    free(s->rx);
    *s = (stream){0};
}

static void check_done(peer *p) {
    if (p->counted || !p->reserved || !p->known || !p->told) return;
    p->counted = 1;
    open_now++;
    busy--;
    last_news = now_ns();
}

/* Cuts one multistream message off; 0: none yet. */
static int message(stream *s, char *out) {
    int n = s->rx_n ? s->rx[0] : 0; /* names of 128 bytes and more are none of ours */
    if (n < 1 || n > 127 || s->rx_n < 1 + n) return 0;
    memcpy(out, s->rx + 1, n - 1);
    out[n - 1] = 0;
    s->rx_n -= 1 + n;
    memmove(s->rx, s->rx + 1 + n, s->rx_n);
    return 1;
}

static void serve(peer *p, stream *s) {
    char name[128];
    uint8_t answer[ROOM], *end = answer;
    int flags = 0, told = 0;
    while (!s->echoes && message(s, name)) {
        if (!s->greeted) {
            s->greeted = 1;
            end = put_framed(end, header + 1, sizeof header - 2);
        } else if (!strcmp(name, "/ipfs/id/1.0.0")) {
            end = put_framed(end, "/ipfs/id/1.0.0\n", 15);
            memcpy(end, identities[p->number].identify, identities[p->number].identify_n);
            end += identities[p->number].identify_n;
            flags = FIN;
            told = 1;
        } else if (!strcmp(name, "/ipfs/ping/1.0.0")) {
            end = put_framed(end, "/ipfs/ping/1.0.0\n", 17);
            s->echoes = 1;
        } else if (!strcmp(name, "/ipfs/id/push/1.0.0")) {
            end = put_framed(end, "/ipfs/id/push/1.0.0\n", 20);
            s->echoes = 2; /* listens */
        } else {
            end = put_framed(end, "na\n", 3);
        }
    }
    if (s->echoes == 1) {
        memcpy(end, s->rx, s->rx_n);
        end += s->rx_n;
    }
    if (s->echoes) s->rx_n = 0;
    if (s->ended) flags |= told ? 0 : FIN;
    if (end > answer || flags) say(p, s, flags, answer, end - answer);
    p->told |= told;
    if (s->ended) drop(s);
    check_done(p);
}

static void begin_identify(peer *p) { say(p, make(p, IDENTIFY), 0, identify_proposal, sizeof identify_proposal - 1); }

static void begin_hop(peer *p) { say(p, make(p, HOP), 0, hop_proposal, sizeof hop_proposal); }

/* The status in a framed HopMessage (field 5, behind what else there is); 0: not all of it is here, -1: none. */
static int status(const uint8_t *p, const uint8_t *end) {
    uint64_t v, key;
    int shift;
#define VARINT(v)                                                                       \
    for (v = shift = 0;; shift += 7) {                                                  \
        if (p == end) return 0;                                                         \
        v |= (uint64_t)(*p & 0x7f) << shift;                                            \
        if (*p++ < 0x80) break;                                                         \
    }
    VARINT(v)
    if ((uint64_t)(end - p) < v) return 0;
    end = p + v;
    while (p < end) {
        VARINT(key)
        VARINT(v)
        if (key == (5 << 3)) return v;
        if ((key & 7) == 2) p += v;
    }
    return -1;
}

static void answered(peer *p, stream *s) {
    int skip = s->id == IDENTIFY ? sizeof identify_proposal - 1 : sizeof hop_proposal - 3, got;
    if (s->rx_n >= skip && memcmp(s->rx, s->id == IDENTIFY ? identify_proposal : hop_proposal, skip))
        return gone(p, "the relay refused a protocol");
    if (s->id == IDENTIFY && s->ended) {
        if (s->rx_n < skip + 64) return gone(p, "the relay says nothing of itself");
        say(p, s, FIN, NULL, 0);
        drop(s);
        p->known = 1;
        begin_hop(p);
    } else if (s->id == HOP && !p->reserved && s->rx_n > skip && (got = status(s->rx + skip, s->rx + s->rx_n))) {
        if (got != OK) return gone(p, "the relay gives no place");
        p->reserved = 1;
        say(p, s, FIN, NULL, 0);
    }
    if (s->ended && s->id == HOP) {
        if (!p->reserved) return gone(p, "the relay closed without an answer to RESERVE");
        drop(s);
    }
    check_done(p);
}

static void frame(peer *p, int type, int flags, uint32_t id, uint32_t length, const uint8_t *data) {
    stream *s;
    if (type == PING) {
        if (flags & SYN) put_frame(p, PING, ACK, 0, length, NULL, 0);
        return;
    }
    if (type == GOAWAY) return gone(p, "the relay said go-away");
    s = find(p, id);
    if (!s && flags & SYN) s = make(p, id);
    if (!s) return;
    if (flags & RST) {
        if (id % 2) return gone(p, "the relay reset a stream");
        drop(s);
        return;
    }
    if (type == DATA) {
        if (s->rx_n + length > ROOM) return gone(p, "more on a stream than expected");
        memcpy(s->rx + s->rx_n, data, length);
        s->rx_n += length;
    }
    s->ended |= flags & FIN;
    if (id % 2) answered(p, s);
    else serve(p, s);
}

/* In */

static void frames(peer *p) {
    int at = 0;
    while (p->state == OPEN && p->plain_n - at >= HEADER) {
        uint8_t *h = p->plain + at;
        uint32_t id, length;
        memcpy(&id, h + 4, 4);
        memcpy(&length, h + 8, 4);
        id = ntohl(id);
        length = ntohl(length);
        int payload = h[1] == DATA ? length : 0;
        if (p->plain_n - at - HEADER < payload) break;
        frame(p, h[1], h[2] << 8 | h[3], id, length, h + HEADER);
        at += HEADER + payload;
    }
    p->plain_n -= at;
    memmove(p->plain, p->plain + at, p->plain_n);
}

static void secured(peer *p, uint8_t *second, int n) {
    uint8_t third[PREFIX + 512];
    char keys[2][2 * KEY + 1];
    int early, size = noise_finish(p->noise, second, n, &identities[p->number], third + PREFIX, keys, &early);
    third[0] = size >> 8;
    third[1] = size;
    put(p, third, PREFIX + size);
    half_init(&p->seals, formats, keys[0], 0, 1);
    half_init(&p->opens, formats, keys[1], 0, 0);
    free(p->noise);
    p->plain = malloc(2 * ROOM + 65536);
    if (early) {
        p->state = OPEN;
        begin_identify(p);
    } else {
        p->state = CHOOSING;
        put_record(p, yamux_proposal, sizeof yamux_proposal - 1);
    }
}

/* Takes what it can of p->in; the result is how much that is. */
static int take(peer *p, uint8_t *data, int n) {
    if (p->state == GREETING) {
        int want = sizeof noise_proposal - 1;
        if (n < want) return 0;
        if (memcmp(data, noise_proposal, want)) return gone(p, "the relay speaks no Noise"), 0;
        uint8_t first[PREFIX + KEY] = {0, KEY};
        p->noise = malloc(sizeof *p->noise);
        memcpy(first + PREFIX, noise_begin(p->noise, p->number), KEY);
        put(p, first, sizeof first);
        p->state = SECURING;
        return want;
    }
    int size = n >= PREFIX ? data[0] << 8 | data[1] : 0;
    if (n < PREFIX + size || n < PREFIX) return 0;
    if (p->state == SECURING) {
        secured(p, data + PREFIX, size);
        return PREFIX + size;
    }
    uint8_t type;
    unseal(&p->opens, data, &type);
    if (p->plain_n + size > 2 * ROOM + 65536) return gone(p, "a frame larger than expected"), 0;
    memcpy(p->plain + p->plain_n, data + PREFIX, size - TAG);
    p->plain_n += size - TAG;
    if (p->state == CHOOSING) {
        int want = sizeof yamux_proposal - 1;
        if (p->plain_n < want) return PREFIX + size;
        if (memcmp(p->plain, yamux_proposal, want)) return gone(p, "the relay speaks no yamux"), 0;
        p->plain_n -= want;
        memmove(p->plain, p->plain + want, p->plain_n);
        p->state = OPEN;
        begin_identify(p);
    }
    frames(p);
    return PREFIX + size;
}

static void readable(peer *p) {
    static uint8_t buffer[1 << 18];
    memcpy(buffer, p->in, p->in_n);
    int at = 0, n = p->in_n, got = recv(p->fd, buffer + n, sizeof buffer - n, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return gone(p, got ? strerror(errno) : "the relay closed the connection");
    n += got;
    for (int took = 1; took && p->state != GONE; at += took) took = take(p, buffer + at, n - at);
    free(p->in);
    p->in_n = n - at;
    p->in = malloc(p->in_n + 1);
    memcpy(p->in, buffer + at, p->in_n);
}

/* Peers */

static void start(int number) {
    int on = 1;
    peer *p = peers[number] = calloc(1, sizeof *p);
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000101 + number % SOURCES)};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = p};
    p->number = number;
    p->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (p->fd < 0) die("no descriptors left: raise RLIMIT_NOFILE");
    setsockopt(p->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    busy++;
    if (bind(p->fd, (void *)&source, sizeof source) || connect(p->fd, (void *)&relay, sizeof relay))
        return gone(p, strerror(errno));
    epoll_ctl(poller, EPOLL_CTL_ADD, p->fd, &event);
    put(p, noise_proposal, sizeof noise_proposal - 1);
}

static void forget_all(void) {
    for (int i = 0; i < started; i++) {
        peer *p = peers[i];
        if (p->state != GONE) close(p->fd);
        if (p->state == OPEN) EVP_CIPHER_CTX_free(p->seals.ctx), EVP_CIPHER_CTX_free(p->opens.ctx);
        for (int j = 0; j < STREAMS; j++) free(p->streams[j].rx);
        free(p->in);
        free(p->plain);
        free(p);
        free(identities[i].identify);
    }
    total = started = open_now = failed = busy = 0;
}

/* Serves for `timeout` ms at most; 1: a command waits. */
static int serve_all(int timeout) {
    struct epoll_event events[256];
    int n = epoll_wait(poller, events, 256, timeout), command = 0;
    for (int i = 0; i < n; i++) {
        peer *p = events[i].data.ptr;
        if (!p) command = 1;
        else if (p->state != GONE) readable(p);
    }
    return command;
}

static void open_more(int count, int parallel) {
    int first = total, failed_before = failed;
    total += count;
    peers = realloc(peers, total * sizeof *peers);
    identities = realloc(identities, total * sizeof *identities);
    for (int i = first; i < total; i++) make_identity(&identities[i], i);
    printf("{\"ready\": %d}\n", count);
    fflush(stdout);
    int64_t begun = last_news = now_ns();
    while (started < total || busy) {
        while (started < total && busy < parallel) start(started++);
        serve_all(1000);
        if (now_ns() - last_news > PATIENCE * 1000000000LL) {
            for (int i = first; i < started; i++)
                if (!peers[i]->counted) gone(peers[i], "the relay lets it wait");
        }
    }
    printf("{\"open\": %d, \"failed\": %d, \"seconds\": %.6f}\n", open_now, failed - failed_before,
           (last_news - begun) / 1e9);
    fflush(stdout);
}

int main(int argc, char **argv) {
    char line[128];
    int count, parallel;
    struct epoll_event event = {.events = EPOLLIN};
    if (argc != 3) die("usage: clients IPV4 PORT");
    relay = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (!inet_aton(argv[1], &relay.sin_addr)) die("not an IPv4 address");
    make_pairs();
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event)) die("standard input must be a pipe");
    setvbuf(stdin, NULL, _IONBF, 0);
    for (;;) {
        if (!serve_all(-1)) continue;
        if (!fgets(line, sizeof line, stdin)) return 0;
        if (sscanf(line, "open %d %d", &count, &parallel) == 2) {
            open_more(count, parallel);
        } else {
            if (!strcmp(line, "close\n")) forget_all();
            printf("{\"open\": %d}\n", open_now);
            fflush(stdout);
        }
    }
}
