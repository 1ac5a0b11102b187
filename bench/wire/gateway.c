/* The least that a relay takes for a Genesys Cloud organisation, cheap enough to share a machine with what is measured.
 *
 *     gateway [links=open|refused|mute]
 *
 * It prints its address and serves the token, the gateway's chat stream and the transcript's WebSocket on one port. The
 * prompt holds the order: "tokens=60 rate=20" asks for 60 tokens at 20 a second, rate=0 for as fast as they are taken.
 * GET /stats says what the transcript has been sent. No fault but those of `links`: for others there is the sandbox.
 */
#include "wire.h"

#define BATCH 32 /* tokens written at once where there is no pace */

enum kind { REQUESTS, STREAM, LINK };

typedef struct { char *at; size_t used, room; } buffer;

typedef struct connection {
    int fd;
    enum kind kind;
    buffer in, out;
    size_t sent;        /* of `out` */
    long left;          /* tokens of the answer */
    uint64_t gap, due;  /* ns between two tokens, and when the next one is to go; a gap of 0 is no pace */
    struct connection *next, *before; /* among those with a pace */
} connection;

static int poller;
static connection *paced;
static const char *links;
static struct { unsigned long messages, tokens; } transcript;

/* Room for n more bytes and a 0. */
static char *reserve(buffer *b, size_t n) {
    if (b->used + n >= b->room) {
        b->room = 2 * (b->used + n) + 1024;
        b->at = realloc(b->at, b->room);
    }
    return b->at + b->used;
}

static void put(connection *c, const void *data, size_t n) {
    memcpy(reserve(&c->out, n), data, n);
    c->out.used += n;
}

static void put_text(connection *c, const char *text) { put(c, text, strlen(text)); }

static void watch(connection *c, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

/* 0: all is sent; 1: the socket is full; -1: it is dead. */
static int flush(connection *c) {
    while (c->sent < c->out.used) {
        ssize_t n = send(c->fd, c->out.at + c->sent, c->out.used - c->sent, 0);
        if (n < 0 && errno != EAGAIN) return -1;
        if (n < 0) {
            watch(c, EPOLLIN | EPOLLOUT);
            return 1;
        }
        c->sent += (size_t)n;
    }
    c->sent = c->out.used = 0;
    return 0;
}

/* ---- the chat stream ---- */

static const char *OPENING =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench\","
    "\"choices\":[{\"index\":0,\"delta\":{";

static void put_chunk(connection *c, const char *delta, const char *reason) {
    char line[512], head[16];
    int n = snprintf(line, sizeof line, "%s%s},\"finish_reason\":%s}]}\n\n", OPENING, delta, reason);
    put(c, head, (size_t)snprintf(head, sizeof head, "%x\r\n", n));
    put(c, line, (size_t)n);
    put(c, "\r\n", 2);
}

static void set_paced(connection *c) {
    c->next = paced;
    c->before = NULL;
    if (paced) paced->before = c;
    paced = c;
}

static void unset_paced(connection *c) {
    if (c->before) c->before->next = c->next;
    else paced = c->next;
    if (c->next) c->next->before = c->before;
}

static void put_token(connection *c) {
    char delta[64];
    snprintf(delta, sizeof delta, "\"content\":\"~%016llx \"", (unsigned long long)now_ns());
    put_chunk(c, delta, "null");
    if (--c->left) return;
    put_chunk(c, "", "\"stop\"");
    put_text(c, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    c->kind = REQUESTS;
    if (c->gap) unset_paced(c);
}

/* Sends what may go: of an answer without a pace, as much as is taken. */
static int pump(connection *c) {
    int state = flush(c);
    while (!state && c->kind == STREAM && !c->gap) {
        for (int n = 0; n < BATCH && c->kind == STREAM; n++) put_token(c);
        state = flush(c);
    }
    return state;
}

static void begin_answer(connection *c, const char *body) {
    double rate = 0;
    long tokens = 1;
    const char *order = strstr(body, "tokens=");
    if (order) sscanf(order, "tokens=%ld rate=%lf", &tokens, &rate);
    put_text(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    c->kind = STREAM;
    c->left = tokens > 0 ? tokens : 1;
    c->gap = rate > 0 ? (uint64_t)(1e9 / rate) : 0;
    c->due = now_ns();
    if (c->gap) set_paced(c);
}

static void send_due(uint64_t now) {
    for (connection *c = paced, *next; c; c = next) {
        next = c->next;
        if (c->due > now) continue;
        for (; c->due <= now && c->kind == STREAM; c->due += c->gap) put_token(c);
        flush(c);  /* a dead one is dropped where it is read */
    }
}

/* ---- the transcript's link (RFC 6455) ---- */

static void sha1(const unsigned char *text, size_t length, unsigned char digest[20]) {  /* RFC 3174, up to 119 bytes */
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0}, w[80];
    unsigned char block[128] = {0};
    size_t total = length + 9 <= 64 ? 64 : 128;
    memcpy(block, text, length);
    block[length] = 0x80;
    for (int i = 0; i < 4; i++) block[total - 1 - i] = (unsigned char)(length * 8 >> 8 * i);
#define ROLL(x, n) ((x) << (n) | (x) >> (32 - (n)))
    for (size_t at = 0; at < total; at += 64) {
        for (int i = 0; i < 80; i++) {
            const unsigned char *b = block + at + 4 * i;
            w[i] = i < 16 ? (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3]
                          : ROLL(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        }
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                         : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                         : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                                  : (b ^ c ^ d) + 0xCA62C1D6;
            uint32_t t = ROLL(a, 5) + f + e + w[i];
            e = d, d = c, c = ROLL(b, 30), b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const unsigned char digest[20], char out[29]) {
    static const char *letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char padded[21] = {0};
    memcpy(padded, digest, 20);
    for (int i = 0; i < 28; i++) {
        const unsigned char *p = padded + i / 4 * 3;
        out[i] = letters[(p[0] << 16 | p[1] << 8 | p[2]) >> (18 - 6 * (i % 4)) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

static void open_link(connection *c, const char *head) {
    char key[128] = "", accept[29];
    unsigned char digest[20];
    const char *given = strcasestr(head, "\r\nsec-websocket-key:");
    if (!strcmp(links, "refused")) {
        put_text(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    if (given) sscanf(given + 20, " %60s", key);
    strcat(key, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11");  /* RFC 6455, 1.3 */
    sha1((unsigned char *)key, strlen(key), digest);
    base64(digest, accept);
    put_text(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ");
    put_text(c, accept);
    put_text(c, "\r\n\r\n");
    c->kind = LINK;
    if (!strcmp(links, "mute")) watch(c, 0);
}

static void take_frame(connection *c, int opcode, unsigned char *body, size_t length) {
    scanner s = {0};
    if (opcode == 1) {
        transcript.messages++;
        for (size_t i = 0; i < length; i++) transcript.tokens += (unsigned)scan(&s, body[i]);
    } else if (opcode == 8 || opcode == 9) {  /* close is answered with close, ping with pong */
        unsigned char head[2] = {opcode == 8 ? 0x88 : 0x8A, (unsigned char)length};
        put(c, head, 2);
        put(c, body, length);
    }
}

/* The bytes of the first frame, 0 unless all of it is there. Clients' frames are masked (RFC 6455, 5.3). */
static size_t read_frame(connection *c) {
    unsigned char *f = (unsigned char *)c->in.at;
    size_t there = c->in.used, length = there < 2 ? 0 : f[1] & 127, head = 6;
    if (there < 14 && (there < 2 || there < head + length || length > 125)) return 0;
    if (length == 126) length = (size_t)f[2] << 8 | f[3], head = 8;
    else if (length == 127) {
        length = 0, head = 14;
        for (int i = 2; i < 10; i++) length = length << 8 | f[i];
    }
    if (there < head + length) return 0;
    for (size_t i = 0; i < length; i++) f[head + i] ^= f[head - 4 + i % 4];
    take_frame(c, f[0] & 15, f + head, length);
    return head + length;
}

/* ---- requests ---- */

static void answer_json(connection *c, const char *json) {
    char head[128];
    snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
             strlen(json));
    put_text(c, head);
    put_text(c, json);
}

/* The bytes of the first request, 0 unless all of it is there. */
static size_t read_request(connection *c) {
    c->in.at[c->in.used] = 0;
    char *end = strstr(c->in.at, "\r\n\r\n"), *length, json[128];
    if (!end) return 0;
    *end = 0;  /* the head's end */
    length = strcasestr(c->in.at, "\r\ncontent-length:");
    size_t whole = (size_t)(end + 4 - c->in.at) + (length ? strtoul(length + 17, NULL, 10) : 0);
    int is_upgrade = strcasestr(c->in.at, "\r\nupgrade: websocket") != NULL;
    if (c->in.used < whole) {
        *end = '\r';
        return 0;
    }
    char kept = c->in.at[whole];
    c->in.at[whole] = 0;
    if (is_upgrade) open_link(c, c->in.at);
    else if (strstr(c->in.at, "/oauth/token "))
        answer_json(c, "{\"access_token\":\"bench\",\"token_type\":\"bearer\",\"expires_in\":86400}");
    else if (strstr(c->in.at, "/stats ")) {
        snprintf(json, sizeof json, "{\"messages\": %lu, \"tokens\": %lu}", transcript.messages, transcript.tokens);
        answer_json(c, json);
    } else begin_answer(c, end + 4);
    c->in.at[whole] = kept;
    return whole;
}

/* Takes what has come; -1 when the other side has gone. */
static int receive(connection *c) {
    ssize_t n = recv(c->fd, reserve(&c->in, 4096), 4096, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
    c->in.used += (size_t)n;
    while (c->in.used && c->kind != STREAM) {
        size_t used = c->kind == LINK ? read_frame(c) : read_request(c);
        if (!used) break;
        memmove(c->in.at, c->in.at + used, c->in.used -= used);
    }
    return pump(c) < 0 ? -1 : 0;
}

static void drop(connection *c) {
    if (c->kind == STREAM && c->gap) unset_paced(c);
    close(c->fd);
    free(c->in.at);
    free(c->out.at);
    free(c);
}

static void take_connections(int listener) {
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;) {
        connection *c = calloc(1, sizeof *c);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        make_quick(fd);
        c->fd = fd;
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static int listen_anywhere(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in place = loopback(0);
    socklen_t size = sizeof place;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    if (bind(listener, (void *)&place, size) || listen(listener, 4096)) {
        perror("listen");
        exit(1);
    }
    make_quick(listener);
    getsockname(listener, (void *)&place, &size);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    printf("listening on http://127.0.0.1:%d\n", ntohs(place.sin_port));
    fflush(stdout);
    return listener;
}

int main(int count, char **arguments) {
    (void)count;
    prepare();
    links = option(arguments, "links", "open");
    poller = epoll_create1(0);
    int listener = listen_anywhere();
    struct epoll_event events[512];
    for (;;) {
        int n = epoll_wait(poller, events, 512, paced ? 1 : -1);
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            if (!c) {
                take_connections(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT) watch(c, EPOLLIN);
            int dead = (events[i].events & EPOLLOUT && pump(c) < 0) ||
                       (events[i].events & ~EPOLLOUT && receive(c) < 0);
            if (dead) drop(c);
        }
        send_due(now_ns());
    }
}
