/* Asks for many answers at once and times their tokens; prints JSON, a line each.
 *
 *     client PORT PATH streams=N tokens=N rate=R ramp=MS limit=S name=NAME
 *         Opens the streams evenly over the ramp and reads them to their ends. {"mark": "open"} comes when each has its
 *         first token, {"mark": "closing"} when the first has ended, then the figures.
 *     client PORT PATH mix name=NAME
 *         Keeps as many streams open as the last line of standard input says, of the kinds below. Each such line is
 *         answered with the figures since the one before. Ends with its input.
 *
 * The tokens are those of gateway.c. The conversation is NAME and the stream's number, which in a mix the next one
 * takes over: it asks again in the same conversation.
 */
#include "wire.h"

/* Times in milliseconds. */
typedef struct { float *value; size_t count, room; } samples;

static void add(samples *s, uint64_t ns) {
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 4096;
        s->value = realloc(s->value, s->room * sizeof *s->value);
    }
    s->value[s->count++] = (float)(ns / 1e6);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* `"name": {"p50": ..., "p99": ...}` by nearest rank, null without any; forgets them. */
static void print_percentiles(const char *name, samples *s) {
    if (!s->count) {
        printf("\"%s\": null", name);
        return;
    }
    qsort(s->value, s->count, sizeof *s->value, by_value);
    printf("\"%s\": {\"p50\": %.3f, \"p99\": %.3f}", name, s->value[(s->count + 1) / 2 - 1],
           s->value[(s->count * 99 + 99) / 100 - 1]);
    s->count = 0;
}

#define ARRIVAL_GAP 5000000u /* ns between two beginnings in a mix: what begins together stays together */
#define MOST 20000           /* streams in a mix */

/* A kind of answer; `leaves` is after how many tokens its reader goes, 0 for never. */
typedef struct { int weight; long tokens; double rate; long leaves; } kind;
static const kind MIX[] = {{50, 60, 20, 0}, {25, 5, 20, 0}, {15, 200, 10, 0}, {10, 60, 20, 10}};

enum state { IDLE, CONNECTING, HEAD, SIZE, DATA, ENDED };

typedef struct {
    int fd, number, status, is_chunked;
    enum state state;
    char line[4096]; /* of the head, or of a chunk's size */
    size_t length, left;
    long tokens;
    kind order;
    uint64_t begun;
    scanner scan;
} stream;

static int poller, port, open_now, over, complete, broken;
static const char *path, *name;
static unsigned long tokens_seen;
static long waiting_for_first;
static uint64_t first_seen, last_seen;
static samples first, age;

static void report(void) {
    double seconds = (last_seen - first_seen) / 1e9;
    printf("{\"complete\": %d, \"broken\": %d, \"open\": %d, \"tokens\": %lu, \"tokens_per_second\": %.0f, ", complete,
           broken, open_now, tokens_seen, seconds > 0 ? tokens_seen / seconds : 0);
    print_percentiles("first_ms", &first);
    printf(", ");
    print_percentiles("age_ms", &age);
    printf("}\n");
    fflush(stdout);
}

static void mark(const char *what) {
    printf("{\"mark\": \"%s\", \"tokens\": %lu}\n", what, tokens_seen);
    fflush(stdout);
}

static void begin(stream *s, int number, kind order) {
    struct sockaddr_in place = loopback(port);
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = s};
    *s = (stream){.fd = socket(AF_INET, SOCK_STREAM, 0), .number = number, .state = CONNECTING, .order = order};
    s->begun = now_ns();
    make_quick(s->fd);
    connect(s->fd, (void *)&place, sizeof place); /* what went wrong shows at the first send */
    epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &e);
    open_now++;
}

static void end(stream *s) {
    long leaves = s->order.leaves; /* one who leaves may have been sent more in the same breath */
    int is_whole = s->status == 200 && (leaves ? s->tokens >= leaves : s->tokens == s->order.tokens);
    close(s->fd);
    s->state = IDLE;
    open_now--;
    complete += is_whole;
    broken += !is_whole;
    if (!over++ && !waiting_for_first) mark("closing");
}

static int ask(stream *s) {
    char body[512], request[1024];
    int n = snprintf(body, sizeof body, "{\"conversationId\": \"%s-%d\", \"prompt\": \"tokens=%ld rate=%g\"}", name,
                     s->number, s->order.tokens, s->order.rate);
    n = snprintf(request, sizeof request,
                 "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                 "Accept: text/event-stream\r\nContent-Length: %d\r\n\r\n%s", path, port, n, body);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &e);
    s->state = HEAD;
    return send(s->fd, request, (size_t)n, 0) == n ? 0 : -1;
}

static void read_body(stream *s, const char *data, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!scan(&s->scan, (unsigned char)data[i])) continue;
        last_seen = now_ns();
        if (!first_seen) first_seen = last_seen;
        add(&age, last_seen - s->scan.sent);
        tokens_seen++;
        if (s->tokens++) continue;
        add(&first, last_seen - s->begun);
        if (!--waiting_for_first && !over) mark("open");
    }
}

/* A line of the head, or that says a chunk's size (RFC 9112, 7.1). */
static void read_line(stream *s) {
    s->line[s->length] = 0;
    if (s->state == HEAD) {
        if (!s->status) s->status = atoi(s->line + 9);
        if (!strncasecmp(s->line, "transfer-encoding: chunked", 26)) s->is_chunked = 1;
        if (s->length == 0) {
            s->state = s->is_chunked ? SIZE : DATA;
            s->left = s->is_chunked ? 0 : SIZE_MAX;
        }
    } else if (s->length) { /* an empty one ends the chunk before */
        s->left = strtoul(s->line, NULL, 16);
        s->state = s->left ? DATA : ENDED;
    }
    s->length = 0;
}

static void feed(stream *s, const char *data, size_t n) {
    while (n && s->state != ENDED) {
        size_t used = 1;
        if (s->state == DATA) {
            used = n < s->left ? n : s->left;
            read_body(s, data, used);
            if (s->is_chunked && !(s->left -= used)) s->state = SIZE;
        } else if (*data == '\n') read_line(s);
        else if (*data != '\r' && s->length < sizeof s->line - 1) s->line[s->length++] = *data;
        data += used;
        n -= used;
    }
}

static void handle(stream *s) {
    static char data[1 << 18];
    if (s->state == CONNECTING) {
        if (ask(s) < 0) end(s);
        return;
    }
    ssize_t n = recv(s->fd, data, sizeof data, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) feed(s, data, (size_t)n);
    if (n <= 0 || s->state == ENDED || (s->order.leaves && s->tokens >= s->order.leaves)) end(s);
}

static void wait_and_handle(int ms) {
    struct epoll_event events[512];
    int n = epoll_wait(poller, events, 512, ms);
    for (int i = 0; i < n; i++)
        if (events[i].data.ptr) handle(events[i].data.ptr);
}

static int run_all(char **arguments) {
    int streams = atoi(option(arguments, "streams", "1")), begun = 0;
    kind order = {1, atol(option(arguments, "tokens", "1")), atof(option(arguments, "rate", "0")), 0};
    double ramp = 1e6 * atof(option(arguments, "ramp", "0"));
    uint64_t start = now_ns(), limit = (uint64_t)(1e9 * atof(option(arguments, "limit", "60")));
    stream *all = calloc((size_t)streams, sizeof *all);
    waiting_for_first = streams;
    while (over < streams && now_ns() - start < limit) {
        while (begun < streams && (double)(now_ns() - start) >= ramp * begun / streams) {
            begin(&all[begun], begun, order);
            begun++;
        }
        wait_and_handle(begun < streams ? 1 : 100);
    }
    report();
    return 0;
}

static kind choose(void) {
    int chance = rand() % 100;
    const kind *found = MIX;
    while ((chance -= found->weight) >= 0) found++;
    return *found;
}

/* How many streams are wanted from now on; -1 at the input's end. */
static int read_wanted(int wanted) {
    char text[64];
    ssize_t n = read(0, text, sizeof text - 1);
    if (n < 0) return wanted;
    if (n == 0) return -1;
    text[n] = 0;
    report();
    complete = broken = 0;
    tokens_seen = first_seen = last_seen = 0;
    int asked = atoi(text);
    return asked < MOST ? asked : MOST;
}

static int run_mix(void) {
    static stream all[MOST];
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    int wanted = 0, at = 0;
    uint64_t next = 0;
    over = 1; /* no marks here */
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &e);
    while (wanted >= 0) {
        if (open_now < wanted && now_ns() >= next) {
            do at = (at + 1) % wanted;
            while (all[at].state != IDLE);
            begin(&all[at], at, choose());
            next = now_ns() + ARRIVAL_GAP;
        }
        wait_and_handle(open_now < wanted ? 1 : 100);
        wanted = read_wanted(wanted);
    }
    return 0;
}

int main(int count, char **arguments) {
    if (count < 4) return 2;
    prepare();
    poller = epoll_create1(0);
    port = atoi(arguments[1]);
    path = arguments[2];
    name = option(arguments, "name", "bench");
    return strcmp(arguments[3], "mix") ? run_all(arguments) : run_mix();
}
