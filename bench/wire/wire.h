/* What gateway.c and client.c share: sockets, and the stamp in each token.
 *
 * A token is its stamp: '~', CLOCK_MONOTONIC at sending in nanoseconds as 16 hex digits, ' '. The clock is the same in
 * every process of a machine, so whoever reads a token knows its age.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void prepare(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
}

static void make_quick(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* The value of `key=value` among the arguments. */
static const char *option(char **arguments, const char *key, const char *otherwise) {
    size_t length = strlen(key);
    for (; *arguments; arguments++)
        if (!strncmp(*arguments, key, length) && (*arguments)[length] == '=') return *arguments + length + 1;
    return otherwise;
}

/* Finds stamps in a stream of bytes, wherever it is cut. */
typedef struct { int at; uint64_t sent; } scanner;

static int scan(scanner *s, unsigned char c) {
    if (c == '~') {
        s->at = 1;
        s->sent = 0;
    } else if (s->at == 17) {
        s->at = 0;
        return c == ' ';
    } else if (s->at) {
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        s->sent = s->sent << 4 | (unsigned)digit;
        s->at = digit < 0 ? 0 : s->at + 1;
    }
    return 0;
}
