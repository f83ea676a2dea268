# Datagrams in batches: recvmmsg and sendmmsg with GRO and GSO, with stand-ins where a system lacks Linux's.

from flare._core.sockets cimport flare_address

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>

    #ifdef __linux__
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #endif

    #define FLARE_SLOTS 64             /* messages of one receive */
    #define FLARE_PLAIN_SLOT 2048      /* bytes of a message without GRO: more than any path carries */
    #define FLARE_GRO_SLOTS 16
    #define FLARE_GRO_SLOT 65536
    #define FLARE_CHUNK 256            /* datagrams of one send */
    #define FLARE_MESSAGES 64
    #define FLARE_SEGMENTS 64          /* the kernel's UDP_MAX_SEGMENTS, before 6.9 */
    #define FLARE_GSO_BYTES 65000

    typedef struct {
        int slots, count;
        size_t slot;
        unsigned char *memory;
        flare_address from[FLARE_SLOTS];
        size_t size[FLARE_SLOTS];
        size_t segment[FLARE_SLOTS];   /* of a message that GRO made of many; 0: it is one datagram */
        flare_address to[FLARE_SLOTS]; /* which address of ours it came to; AF_UNSPEC: the socket's own */
    } flare_inbox;

    typedef struct {
        int count, errors, last_error;
        int to[FLARE_CHUNK];           /* index into addresses */
        const unsigned char *data[FLARE_CHUNK];
        size_t size[FLARE_CHUNK];
        int addresses;
        flare_address address[FLARE_CHUNK];
        flare_address via[FLARE_CHUNK];  /* the address of ours that it leaves from; AF_UNSPEC: any */
    } flare_outbox;

    #ifdef __linux__
    #define FLARE_IN_CONTROL (CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in6_pktinfo)))
    #define FLARE_OUT_CONTROL (CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(struct in6_pktinfo)))
    #endif

    /* a socket bound to a wildcard tells where each datagram came to, so that answers leave from there */
    static int flare_tell_destination(int fd) {
        flare_address here;
        socklen_t size = sizeof here;
        int on = 1;
        if (getsockname(fd, &here.any, &size) != 0) return 0;
    #ifdef __linux__
        if (here.any.sa_family == AF_INET && here.v4.sin_addr.s_addr == htonl(INADDR_ANY))
            return setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0;
        if (here.any.sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&here.v6.sin6_addr))
            return setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on) == 0;
    #endif
        (void)on;
        return 0;
    }

    static int flare_inbox_open(flare_inbox *box, int fd, int gro) {
        int on = 1, has_gro = 0;
    #ifdef __linux__
        has_gro = gro && setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on) == 0;
    #endif
        (void)on; (void)gro; (void)fd;
        box->slots = has_gro ? FLARE_GRO_SLOTS : FLARE_SLOTS;
        box->slot = has_gro ? FLARE_GRO_SLOT : FLARE_PLAIN_SLOT;
        box->memory = malloc(box->slots * box->slot);
        return box->memory == NULL ? -1 : has_gro;
    }

    static void flare_inbox_free(flare_inbox *box) {
        free(box->memory);
        box->memory = NULL;
    }

    /* 0 or an errno */
    static int flare_receive(int fd, flare_inbox *box) {
    #ifdef __linux__
        struct mmsghdr messages[FLARE_SLOTS];
        struct iovec pieces[FLARE_SLOTS];
        char control[FLARE_SLOTS][FLARE_IN_CONTROL];
        struct cmsghdr *item;
        int i, n;
        for (i = 0; i < box->slots; i++) {
            pieces[i].iov_base = box->memory + i * box->slot;
            pieces[i].iov_len = box->slot;
            memset(&messages[i], 0, sizeof messages[i]);
            messages[i].msg_hdr.msg_name = &box->from[i];
            messages[i].msg_hdr.msg_namelen = sizeof box->from[i];
            messages[i].msg_hdr.msg_iov = &pieces[i];
            messages[i].msg_hdr.msg_iovlen = 1;
            messages[i].msg_hdr.msg_control = control[i];
            messages[i].msg_hdr.msg_controllen = sizeof control[i];
        }
        box->count = 0;
        do {
            n = recvmmsg(fd, messages, box->slots, MSG_DONTWAIT, NULL);
        } while (n < 0 && errno == EINTR);
        if (n < 0) return errno;
        for (i = 0; i < n; i++) {
            box->size[i] = messages[i].msg_hdr.msg_flags & MSG_TRUNC ? 0 : messages[i].msg_len;
            box->segment[i] = 0;
            box->to[i].any.sa_family = AF_UNSPEC;
            struct msghdr *head = &messages[i].msg_hdr;
            for (item = CMSG_FIRSTHDR(head); item; item = CMSG_NXTHDR(head, item)) {
                if (item->cmsg_level == SOL_UDP && item->cmsg_type == UDP_GRO) {
                    int segment;
                    memcpy(&segment, CMSG_DATA(item), sizeof segment);
                    box->segment[i] = segment > 0 ? segment : 0;
                } else if (item->cmsg_level == IPPROTO_IP && item->cmsg_type == IP_PKTINFO) {
                    struct in_pktinfo info;
                    memcpy(&info, CMSG_DATA(item), sizeof info);
                    memset(&box->to[i], 0, sizeof box->to[i]);
                    box->to[i].v4.sin_family = AF_INET;
                    box->to[i].v4.sin_addr = info.ipi_spec_dst;
                } else if (item->cmsg_level == IPPROTO_IPV6 && item->cmsg_type == IPV6_PKTINFO) {
                    struct in6_pktinfo info;
                    memcpy(&info, CMSG_DATA(item), sizeof info);
                    memset(&box->to[i], 0, sizeof box->to[i]);
                    box->to[i].v6.sin6_family = AF_INET6;
                    box->to[i].v6.sin6_addr = info.ipi6_addr;
                    box->to[i].v6.sin6_scope_id = info.ipi6_ifindex;
                }
            }
        }
        box->count = n;
        return 0;
    #else
        box->count = 0;
        while (box->count < box->slots) {
            int i = box->count;
            socklen_t name = sizeof box->from[i];
            ssize_t n = recvfrom(fd, box->memory + i * box->slot, box->slot, MSG_DONTWAIT,
                                 &box->from[i].any, &name);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return box->count ? 0 : errno;
            box->size[i] = (size_t)n < box->slot ? (size_t)n : 0;
            box->segment[i] = 0;
            box->to[i].any.sa_family = AF_UNSPEC;
            box->count++;
        }
        return 0;
    #endif
    }

    #ifdef __linux__
    static void flare_add_control(struct msghdr *head, struct cmsghdr **item, int level, int type,
                                  const void *data, size_t size) {
        *item = *item == NULL ? CMSG_FIRSTHDR(head) : CMSG_NXTHDR(head, *item);
        (*item)->cmsg_level = level;
        (*item)->cmsg_type = type;
        (*item)->cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(*item), data, size);
        head->msg_controllen = (char *)*item + CMSG_SPACE(size) - (char *)head->msg_control;
    }

    static void flare_set_control(struct msghdr *head, char *control, const flare_address *via,
                                  uint16_t segment) {
        struct cmsghdr *item = NULL;
        memset(control, 0, FLARE_OUT_CONTROL);
        head->msg_control = control;
        head->msg_controllen = FLARE_OUT_CONTROL;
        if (segment) {
            flare_add_control(head, &item, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment);
            if (via->any.sa_family != AF_UNSPEC) head->msg_controllen = FLARE_OUT_CONTROL;
        }
        if (via->any.sa_family == AF_INET) {
            struct in_pktinfo info;
            memset(&info, 0, sizeof info);
            info.ipi_spec_dst = via->v4.sin_addr;
            flare_add_control(head, &item, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
        } else if (via->any.sa_family == AF_INET6) {
            struct in6_pktinfo info;
            memset(&info, 0, sizeof info);
            info.ipi6_addr = via->v6.sin6_addr;
            info.ipi6_ifindex = via->v6.sin6_scope_id;
            flare_add_control(head, &item, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
        }
        if (item == NULL) {
            head->msg_control = NULL;
            head->msg_controllen = 0;
        }
    }
    #endif

    /* Send from `first` on; returns the first datagram that the socket has no room for, or the count. One
       that cannot be sent at all is counted in `errors` and passed over. `*gso` turns 0 where the kernel
       refuses it. */
    static int flare_send(int fd, flare_outbox *box, int first, int *gso) {
    #ifdef __linux__
        struct mmsghdr messages[FLARE_MESSAGES];
        struct iovec pieces[FLARE_CHUNK];
        int end[FLARE_MESSAGES];
        char control[FLARE_MESSAGES][FLARE_OUT_CONTROL];
        int i, at, n, count;
        while (first < box->count) {
            for (count = 0, at = first; count < FLARE_MESSAGES && at < box->count; count++) {
                struct msghdr *head = &messages[count].msg_hdr;
                size_t step = box->size[at], total = 0;
                int start = at;
                memset(&messages[count], 0, sizeof messages[count]);
                do {
                    pieces[at].iov_base = (void *)box->data[at];
                    pieces[at].iov_len = box->size[at];
                    total += box->size[at++];
                } while (*gso && at < box->count && box->to[at] == box->to[start] && box->size[at] <= step
                         && box->size[at - 1] == step && at - start < FLARE_SEGMENTS
                         && total + box->size[at] <= FLARE_GSO_BYTES);
                head->msg_name = &box->address[box->to[start]];
                head->msg_namelen = flare_address_size(&box->address[box->to[start]]);
                head->msg_iov = &pieces[start];
                head->msg_iovlen = at - start;
                flare_set_control(head, control[count], &box->via[box->to[start]], at - start > 1 ? step : 0);
                end[count] = at;
            }
            for (i = 0; i < count;) {
                n = sendmmsg(fd, messages + i, count - i, MSG_DONTWAIT);
                if (n > 0) {
                    i += n;
                    first = end[i - 1];
                    continue;
                }
                if (errno == EINTR) continue;
                if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) return first;
                if (messages[i].msg_hdr.msg_iovlen > 1
                    && (errno == EIO || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOPROTOOPT)) {
                    *gso = 0;
                    break;
                }
                box->errors += end[i] - first;
                box->last_error = errno;
                first = end[i++];
            }
        }
        return box->count;
    #else
        *gso = 0;
        for (; first < box->count; first++) {
            const flare_address *to = &box->address[box->to[first]];
            ssize_t n;
            do {
                n = sendto(fd, box->data[first], box->size[first], MSG_DONTWAIT,
                           &to->any, flare_address_size(to));
            } while (n < 0 && errno == EINTR);
            if (n >= 0) continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) return first;
            box->errors++;
            box->last_error = errno;
        }
        return first;
    #endif
    }

    static int flare_is_named(const flare_address *a) {
        return a->any.sa_family != AF_UNSPEC;
    }

    static void flare_unname(flare_address *a) {
        a->any.sa_family = AF_UNSPEC;
    }

    static int flare_has_gso(void) {
    #ifdef __linux__
        return 1;
    #else
        return 0;
    #endif
    }

    /* "IP" or "IP%scope" of an address; 0 for a family that is none of ours */
    static int flare_host(const flare_address *a, char *out, size_t size) {
        if (a->any.sa_family == AF_INET) return inet_ntop(AF_INET, &a->v4.sin_addr, out, size) != NULL;
        if (a->any.sa_family != AF_INET6) return 0;
        if (inet_ntop(AF_INET6, &a->v6.sin6_addr, out, size) == NULL) return 0;
        if (a->v6.sin6_scope_id && IN6_IS_ADDR_LINKLOCAL(&a->v6.sin6_addr)) {
            size_t used = strlen(out);
            snprintf(out + used, size - used, "%%%u", (unsigned)a->v6.sin6_scope_id);
        }
        return 1;
    }

    /* 0 when `host` is no IP address */
    static int flare_parse(const char *host, int port, flare_address *out) {
        char bare[64];
        const char *scope = strchr(host, '%');
        size_t size = scope ? (size_t)(scope - host) : strlen(host);
        memset(out, 0, sizeof *out);
        if (size >= sizeof bare || port < 0 || port > 65535) return 0;
        memcpy(bare, host, size);
        bare[size] = 0;
        if (inet_pton(AF_INET, bare, &out->v4.sin_addr) == 1) {
            out->v4.sin_family = AF_INET;
            out->v4.sin_port = htons(port);
            return scope == NULL;
        }
        if (inet_pton(AF_INET6, bare, &out->v6.sin6_addr) != 1) return 0;
        out->v6.sin6_family = AF_INET6;
        out->v6.sin6_port = htons(port);
        if (scope) out->v6.sin6_scope_id = (unsigned)strtoul(scope + 1, NULL, 10);
        return 1;
    }
    """
    enum:
        FLARE_SLOTS
        FLARE_CHUNK

    ctypedef struct flare_inbox:
        int slots
        int count
        size_t slot
        unsigned char* memory
        flare_address* from_ "from"
        size_t* size
        size_t* segment
        flare_address* to

    ctypedef struct flare_outbox:
        int count
        int errors
        int last_error
        int* to
        const unsigned char** data
        size_t* size
        int addresses
        flare_address* address
        flare_address* via

    int flare_inbox_open(flare_inbox* box, int fd, bint gro) noexcept nogil
    void flare_inbox_free(flare_inbox* box) noexcept nogil
    int flare_receive(int fd, flare_inbox* box) noexcept nogil
    int flare_send(int fd, flare_outbox* box, int first, int* gso) noexcept nogil
    bint flare_tell_destination(int fd) noexcept nogil
    bint flare_is_named(const flare_address* a) noexcept nogil
    void flare_unname(flare_address* a) noexcept nogil
    bint flare_has_gso() noexcept nogil
    bint flare_host(const flare_address* a, char* out, size_t size) noexcept nogil
    bint flare_parse(const char* host, int port, flare_address* out) noexcept nogil
