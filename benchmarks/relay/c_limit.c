/* What a relay's bytes cost in plain C: recv, decrypt each record, encrypt it for the other side, send; over epoll.
 *
 * No multiplexer, no policy, no copy: a record that is re-encrypted keeps its size, so all is done where recv put it.
 *
 *     c_limit PAIRS FORMAT RECV_KEY_1 SEND_KEY_1 RECV_KEY_2 SEND_KEY_2
 *
 * prints the port that it listens on, and joins the first connection to the second, the third to the fourth, and so on.
 * All pairs have the same keys. */
#define _GNU_SOURCE
#include "records.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ = 256 * 1024, EVENTS = 256 };

typedef struct {
    int fd;
    half in, out;
    uint8_t *data; /* what came from here: [start, ready) goes to the other side, [ready, end) is half a record */
    size_t start, ready, end;
    uint32_t events;
} side;

static int epoll;
static side *sides;
static pool buffers = {.size = READ + MAX_RECORD};

static void interest(int i) {
    side *s = &sides[i], *other = &sides[i ^ 1];
    uint32_t events = (s->ready == s->start ? EPOLLIN : 0) | (other->ready > other->start ? EPOLLOUT : 0);
    struct epoll_event e = {.events = events, .data.u32 = i};
    if (events != s->events && epoll_ctl(epoll, EPOLL_CTL_MOD, s->fd, &e) < 0) die("epoll_ctl");
    s->events = events;
}

static void flush(int from) {
    side *s = &sides[from];
    while (s->start < s->ready) {
        ssize_t n = send(sides[from ^ 1].fd, s->data + s->start, s->ready - s->start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) exit(0);
        s->start += n;
    }
    if (!s->data) return;
    if (s->end == s->ready) {
        give_back(&buffers, s->data);
        s->data = NULL;
    } else {
        memmove(s->data, s->data + s->ready, s->end - s->ready);
    }
    s->end -= s->ready;
    s->start = s->ready = 0;
}

static void receive(int from) {
    side *s = &sides[from];
    if (!s->data) s->data = lend(&buffers);
    ssize_t n = recv(s->fd, s->data + s->end, READ, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN)) exit(0);
    if (n > 0) s->end += n;
    while (s->end - s->ready >= s->in.format->prefix) {
        uint8_t type, *p = s->data + s->ready;
        size_t size = record_size(&s->in, p);
        if (s->end - s->ready < size) break;
        size_t plain = unseal(&s->in, p, &type);
        seal(&sides[from ^ 1].out, p, plain, type);
        s->ready += size;
    }
    flush(from);
}

int main(int argc, char **argv) {
    if (argc != 7) die("c_limit PAIRS FORMAT RECV_KEY_1 SEND_KEY_1 RECV_KEY_2 SEND_KEY_2");
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rlimit files;
    socklen_t size = sizeof addr;
    int pairs = atoi(argv[1]), listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    const format *f = format_of(argv[2]);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (bind(listener, (void *)&addr, size) < 0 || listen(listener, 4096) < 0) die("listen");
    getsockname(listener, (void *)&addr, &size);
    printf("%d\n", ntohs(addr.sin_port));
    fflush(stdout);
    epoll = epoll_create1(0);
    if (pairs < 1 || !(sides = calloc(2 * pairs, sizeof *sides))) die("how many pairs?");
    for (int i = 0; i < 2 * pairs; i++) {
        struct epoll_event e = {.events = sides[i].events = EPOLLIN, .data.u32 = i};
        sides[i].fd = accept(listener, NULL, NULL);
        setsockopt(sides[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        half_init(&sides[i].in, f, argv[3 + 2 * (i & 1)], 0, 0);
        half_init(&sides[i].out, f, argv[4 + 2 * (i & 1)], 0, 1);
        if (sides[i].fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, sides[i].fd, &e) < 0) die("accept");
    }
    for (;;) {
        struct epoll_event ready[EVENTS];
        int n = epoll_wait(epoll, ready, EVENTS, -1);
        for (int k = 0; k < n; k++) {
            int i = ready[k].data.u32;
            if (ready[k].events & EPOLLOUT) flush(i ^ 1);
            if (ready[k].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && sides[i].start == sides[i].ready) receive(i);
            interest(i);
            interest(i ^ 1);
        }
    }
}
