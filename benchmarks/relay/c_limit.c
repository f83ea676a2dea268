/* What a relay's bytes cost in plain C: recv, decrypt each record, encrypt it for the other side, send; over epoll.
 *
 * No multiplexer, no policy, no copy: a record that is re-encrypted keeps its size, so all is done where recv put it.
 *
 *     c_limit RECV_KEY_1 SEND_KEY_1 RECV_KEY_2 SEND_KEY_2
 *
 * prints the port it listens on, and joins the first two connections. */
#define _GNU_SOURCE
#include "records.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ = 256 * 1024, ROOM = READ + 65537 };

typedef struct {
    int fd;
    half in, out;
    uint8_t data[ROOM]; /* what came from here: [start, ready) goes to the other side, [ready, end) is half a record */
    size_t start, ready, end;
} side;

static int epoll;
static side sides[2];

static void interest(int i) {
    int waits = sides[1 - i].ready > sides[1 - i].start; /* to be written */
    int reads = sides[i].ready == sides[i].start;
    struct epoll_event e = {.events = (reads ? EPOLLIN : 0) | (waits ? EPOLLOUT : 0), .data.u32 = i};
    static uint32_t now[2] = {EPOLLIN, EPOLLIN};
    if (e.events != now[i] && epoll_ctl(epoll, EPOLL_CTL_MOD, sides[i].fd, &e) < 0) die("epoll_ctl");
    now[i] = e.events;
}

static void flush(int from) {
    side *s = &sides[from];
    while (s->start < s->ready) {
        ssize_t n = send(sides[1 - from].fd, s->data + s->start, s->ready - s->start, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) exit(0);
        s->start += n;
    }
    if (s->start == s->ready) {
        memmove(s->data, s->data + s->ready, s->end - s->ready);
        s->end -= s->ready;
        s->start = s->ready = 0;
    }
}

static void receive(int from) {
    side *s = &sides[from];
    ssize_t n = recv(s->fd, s->data + s->end, READ, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) exit(0);
    s->end += n;
    while (s->end - s->ready >= PREFIX) {
        uint8_t *p = s->data + s->ready;
        size_t size = p[0] << 8 | p[1];
        if (s->end - s->ready < PREFIX + size) break;
        if (size < TAG) die("short record");
        open_record(&s->in, p + PREFIX, size - TAG);
        seal(&sides[1 - from].out, p + PREFIX, size - TAG);
        s->ready += PREFIX + size;
    }
    flush(from);
}

int main(int argc, char **argv) {
    if (argc != 5) die("c_limit RECV_KEY_1 SEND_KEY_1 RECV_KEY_2 SEND_KEY_2");
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof addr;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (bind(listener, (void *)&addr, size) < 0 || listen(listener, 2) < 0) die("listen");
    getsockname(listener, (void *)&addr, &size);
    printf("%d\n", ntohs(addr.sin_port));
    fflush(stdout);
    epoll = epoll_create1(0);
    for (int i = 0; i < 2; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        sides[i].fd = accept(listener, NULL, NULL);
        setsockopt(sides[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        half_init(&sides[i].in, argv[1 + 2 * i], 0, 0);
        half_init(&sides[i].out, argv[2 + 2 * i], 0, 1);
        if (sides[i].fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, sides[i].fd, &e) < 0) die("accept");
    }
    for (;;) {
        struct epoll_event ready[2];
        int n = epoll_wait(epoll, ready, 2, -1);
        for (int k = 0; k < n; k++) {
            int i = ready[k].data.u32;
            if (ready[k].events & EPOLLOUT) flush(1 - i);
            if (ready[k].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && sides[i].start == sides[i].ready) receive(i);
        }
        interest(0);
        interest(1);
    }
}
