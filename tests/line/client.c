/* A camera in plain C on libzmq, written by docs/protocol.md alone: msgpack by hand, credits, heartbeats, reconnects.
 *
 *   cc -std=c11 -D_POSIX_C_SOURCE=200809L client.c -lzmq -lm -o client
 *   client ENDPOINT CAMERA [--frames N] [--format mono8|rgb8] [--size W H] [--pixels FILE] [--deadline-ms MS]
 *          [--grace-ms MS] [--code CODE] [--give-up-ms MS] [--keys SERVER_PUBLIC PUBLIC SECRET]
 *
 * It takes a picture whenever a credit is free, and prints one line per trigger. Exit status: 0 every trigger got its
 * verdict from the daemon, 3 some were answered locally, 1 the daemon refuses this camera or is not there, 2 usage.
 */
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

enum { MAX_HEADER = 4096, MAX_UNDER_WAY = 4096, MAX_DEPTH = 32 };
#define FIRST_BACK_OFF_MS 50.0
#define LONGEST_BACK_OFF_MS 500.0
#define ATTEMPT_MS 2000.0
#define STALL_MS 1000.0

/* --- writing msgpack: the caller's headers are far smaller than the buffer */

typedef struct { unsigned char bytes[MAX_HEADER]; size_t size; } Writer;

static void put_byte(Writer *w, unsigned value) {
    if (w->size == MAX_HEADER) { fprintf(stderr, "a header of more than %d bytes\n", MAX_HEADER); exit(2); }
    w->bytes[w->size++] = (unsigned char)value;
}
static void put_big_endian(Writer *w, uint64_t value, int bytes) {
    for (int i = bytes - 1; i >= 0; i--) put_byte(w, (unsigned)(value >> (8 * i)) & 255);
}
static void put_map(Writer *w, unsigned pairs) { put_byte(w, 0x80 | pairs); } /* up to 15 */
static void put_uint(Writer *w, uint64_t value) { put_byte(w, 0xcf); put_big_endian(w, value, 8); }
static void put_double(Writer *w, double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    put_byte(w, 0xcb);
    put_big_endian(w, bits, 8);
}
static void put_text(Writer *w, const char *text) {
    size_t size = strlen(text);
    put_byte(w, 0xd9);
    put_byte(w, (unsigned)(size > 255 ? 255 : size));
    for (size_t i = 0; i < size && i < 255; i++) put_byte(w, (unsigned char)text[i]);
}
static void begin(Writer *w, unsigned pairs, const char *type) {
    w->size = 0;
    put_map(w, pairs + 2);
    put_text(w, "type"); put_text(w, type);
    put_text(w, "v"); put_uint(w, 1);
}

/* --- reading msgpack: nothing beyond the end is read, whatever the bytes promise */

typedef struct { const unsigned char *at, *end; bool bad; } Reader;
typedef enum { NIL, BOOL, NUMBER, TEXT, ARRAY, MAP, OTHER } Kind;
typedef struct { Kind kind; double number; uint64_t count; const char *text; size_t size; } Value;

static uint64_t take(Reader *r, int bytes) {
    uint64_t value = 0;
    if (r->end - r->at < bytes) { r->bad = true; return 0; }
    while (bytes-- > 0) value = value << 8 | *r->at++;
    return value;
}
static Value text_of(Reader *r, Kind kind, uint64_t size) {
    Value v = {.kind = kind, .text = (const char *)r->at, .size = (size_t)size};
    if ((uint64_t)(r->end - r->at) < size) { r->bad = true; v.size = 0; return v; }
    r->at += size;
    return v;
}
static Value number_of(double number, uint64_t count) {
    return (Value){.kind = NUMBER, .number = number, .count = count};
}
/* One value; of arrays and maps only the beginning, with the number of items or pairs in `count`. */
static Value next(Reader *r) {
    unsigned b = (unsigned)take(r, 1);
    uint64_t raw;
    if (b < 0x80) return number_of(b, b);
    if (b < 0x90) return (Value){.kind = MAP, .count = b & 15};
    if (b < 0xa0) return (Value){.kind = ARRAY, .count = b & 15};
    if (b < 0xc0) return text_of(r, TEXT, b & 31);
    if (b >= 0xe0) return number_of((signed char)b, 0);
    switch (b) {
    case 0xc0: return (Value){.kind = NIL};
    case 0xc2: case 0xc3: return (Value){.kind = BOOL, .count = b & 1};
    case 0xc4: case 0xc5: case 0xc6: raw = take(r, 1 << (b - 0xc4)); return text_of(r, OTHER, raw);
    case 0xc7: case 0xc8: case 0xc9: raw = take(r, 1 << (b - 0xc7)); return text_of(r, OTHER, raw + 1);
    case 0xca: { float f; uint32_t bits = (uint32_t)take(r, 4); memcpy(&f, &bits, 4); return number_of(f, 0); }
    case 0xcb: { double d; raw = take(r, 8); memcpy(&d, &raw, 8); return number_of(d, 0); }
    case 0xcc: case 0xcd: case 0xce: case 0xcf: raw = take(r, 1 << (b - 0xcc)); return number_of((double)raw, raw);
    case 0xd0: return number_of((int8_t)take(r, 1), 0);
    case 0xd1: return number_of((int16_t)take(r, 2), 0);
    case 0xd2: return number_of((int32_t)take(r, 4), 0);
    case 0xd3: return number_of((double)(int64_t)take(r, 8), 0);
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return text_of(r, OTHER, (1u << (b - 0xd4)) + 1);
    case 0xd9: case 0xda: case 0xdb: raw = take(r, 1 << (b - 0xd9)); return text_of(r, TEXT, raw);
    case 0xdc: case 0xdd: return (Value){.kind = ARRAY, .count = take(r, 2 << (b - 0xdc))};
    case 0xde: case 0xdf: return (Value){.kind = MAP, .count = take(r, 2 << (b - 0xde))};
    default: r->bad = true; return (Value){.kind = OTHER};
    }
}
static void skip_items(Reader *r, Value v, int depth) {
    uint64_t items = v.kind == MAP ? 2 * v.count : v.kind == ARRAY ? v.count : 0;
    if (depth == MAX_DEPTH) r->bad = true;
    for (uint64_t i = 0; i < items && !r->bad; i++) skip_items(r, next(r), depth + 1);
}
static bool is(Value v, const char *text) {
    return v.kind == TEXT && v.size == strlen(text) && !memcmp(v.text, text, v.size);
}
/* The value of `key` in the map that begins at `message`, and where it begins; NIL where there is none. */
static Value find(Reader message, const char *key, Reader *where) {
    Value map = next(&message);
    for (uint64_t i = 0; map.kind == MAP && i < map.count && !message.bad; i++) {
        Value name = next(&message);
        bool found = is(name, key);
        Reader start = message;
        Value value = next(&message);
        if (found && !message.bad) {
            if (where) *where = start;
            return value;
        }
        skip_items(&message, value, 0);
    }
    return (Value){.kind = NIL};
}
static void print_text(const char *label, Value v) {
    if (v.kind == TEXT) printf(" %s=%.*s", label, (int)v.size, v.text); else printf(" %s=-", label);
}
static void print_number(const char *label, Value v) {
    if (v.kind == NUMBER) printf(" %s=%g", label, v.number); else printf(" %s=-", label);
}

/* --- the camera */

typedef struct { uint64_t seq; double expires_ms; } UnderWay;

static struct {
    const char *endpoint, *camera, *format, *code, *server_public, *public_key, *secret_key, *pixels_file;
    uint64_t frames, width, height;
    double deadline_ms, grace_ms, give_up_ms;
    void *context, *socket;
    unsigned char *pixels;
    size_t pixel_bytes;
    uint64_t session, next_seq, unanswered, late;
    bool welcomed;
    uint64_t credits, count;
    UnderWay under_way[MAX_UNDER_WAY];
    double heartbeat_ms, last_sent_ms, last_heard_ms, attempt_ends_ms, next_attempt_ms, next_hello_ms, back_off_ms;
    double disconnected_since_ms, idle_since_ms;
} c = {.format = "mono8", .frames = 1, .width = 64, .height = 48, .grace_ms = 100, .back_off_ms = FIRST_BACK_OFF_MS};

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}
static bool send_header(const Writer *w, bool more) {
    if (zmq_send(c.socket, w->bytes, w->size, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0) return false;
    c.last_sent_ms = now_ms();
    return true;
}
static void answer_locally(size_t place, const char *reason) {
    printf("seq=%" PRIu64 " verdict=not_inspected reason=%s local=1\n", c.under_way[place].seq, reason);
    c.under_way[place] = c.under_way[--c.count];
    c.unanswered++;
}
static void lost(const char *why) {
    fprintf(stderr, "lost: %s\n", why);
    while (c.count) answer_locally(0, "lost");
    zmq_close(c.socket);
    if (c.welcomed) c.disconnected_since_ms = now_ms();
    c.socket = NULL;
    c.welcomed = false;
    c.next_attempt_ms = now_ms() + c.back_off_ms;
    c.back_off_ms = fmin(2 * c.back_off_ms, LONGEST_BACK_OFF_MS);
}
static void set_int(int option, int value) {
    if (zmq_setsockopt(c.socket, option, &value, sizeof value)) { perror("zmq_setsockopt"); exit(2); }
}
static void set_key(int option, const char *key) {
    if (zmq_setsockopt(c.socket, option, key, strlen(key))) { fprintf(stderr, "no CURVE key: %s\n", key); exit(2); }
}
static void open_socket(void) {
    c.socket = zmq_socket(c.context, ZMQ_DEALER);
    set_int(ZMQ_LINGER, 0);
    set_int(ZMQ_IMMEDIATE, 1); /* nothing is queued for a daemon that is not there */
    if (c.server_public) {
        set_key(ZMQ_CURVE_SERVERKEY, c.server_public);
        set_key(ZMQ_CURVE_PUBLICKEY, c.public_key);
        set_key(ZMQ_CURVE_SECRETKEY, c.secret_key);
    }
    if (zmq_connect(c.socket, c.endpoint)) { fprintf(stderr, "%s: %s\n", c.endpoint, zmq_strerror(errno)); exit(2); }
    c.attempt_ends_ms = now_ms() + ATTEMPT_MS;
    c.next_hello_ms = 0;
}
static void say_hello(void) {
    Writer w;
    begin(&w, 5, "hello");
    put_text(&w, "camera"); put_text(&w, c.camera);
    put_text(&w, "session"); put_uint(&w, c.session);
    put_text(&w, "next_seq"); put_uint(&w, c.next_seq);
    put_text(&w, "unanswered"); put_uint(&w, c.unanswered);
    put_text(&w, "software"); put_text(&w, "client.c");
    if (send_header(&w, false)) c.next_hello_ms = now_ms() + LONGEST_BACK_OFF_MS;
}
static bool send_frame(void) {
    Writer w;
    begin(&w, c.code ? 6 : 5, "frame");
    put_text(&w, "seq"); put_uint(&w, c.next_seq);
    put_text(&w, "format"); put_text(&w, c.format);
    put_text(&w, "width"); put_uint(&w, c.width);
    put_text(&w, "height"); put_uint(&w, c.height);
    put_text(&w, "deadline_ms"); put_double(&w, c.deadline_ms);
    if (c.code) { put_text(&w, "code"); put_text(&w, c.code); }
    if (!c.pixels_file) memset(c.pixels, (int)(c.next_seq & 255), c.pixel_bytes);
    uint64_t seq = c.next_seq++;
    c.under_way[c.count++] = (UnderWay){seq, now_ms() + c.deadline_ms + c.grace_ms};
    c.credits--;
    return send_header(&w, true) && zmq_send(c.socket, c.pixels, c.pixel_bytes, ZMQ_DONTWAIT) >= 0;
}
static void heard_verdict(Reader message) {
    uint64_t seq = find(message, "seq", NULL).count;
    Reader stages, regions;
    c.credits++; /* also of a late one: the daemon is done with its frame */
    for (size_t i = 0; i < c.count; i++) {
        if (c.under_way[i].seq != seq) continue;
        printf("seq=%" PRIu64, seq);
        print_text("verdict", find(message, "verdict", NULL));
        print_text("reason", find(message, "reason", NULL));
        print_number("score", find(message, "score", NULL));
        print_number("lower", find(message, "lower", NULL));
        print_number("upper", find(message, "upper", NULL));
        print_text("product", find(message, "product", NULL));
        Value listed = find(message, "regions", &regions);
        printf(" regions=%" PRIu64, listed.kind == ARRAY ? listed.count : 0);
        if (find(message, "stage_ms", &stages).kind == MAP) print_number("total_ms", find(stages, "total", NULL));
        printf(" local=0\n");
        c.under_way[i] = c.under_way[--c.count];
        return;
    }
    c.late++;
}
static void heard(const unsigned char *bytes, size_t size) {
    Reader message = {bytes, bytes + size, false};
    Value type = find(message, "type", NULL);
    c.last_heard_ms = now_ms();
    if (is(type, "welcome") && !c.welcomed) {
        c.welcomed = true;
        c.back_off_ms = FIRST_BACK_OFF_MS;
        c.idle_since_ms = c.last_heard_ms;
        c.credits = find(message, "credits", NULL).count;
        c.heartbeat_ms = fmax(20, find(message, "heartbeat_ms", NULL).number);
        if (c.deadline_ms <= 0) c.deadline_ms = find(message, "deadline_ms", NULL).number;
        if (c.pixel_bytes > find(message, "max_payload_bytes", NULL).count) {
            fprintf(stderr, "the daemon takes no frames of %zu bytes\n", c.pixel_bytes);
            exit(1);
        }
        fprintf(stderr, "welcome: %" PRIu64 " credits\n", c.credits);
    } else if (is(type, "credit")) {
        c.credits += find(message, "credits", NULL).count;
    } else if (is(type, "verdict") && c.welcomed) {
        heard_verdict(message);
    } else if (is(type, "bye")) {
        lost("the daemon said bye");
    } else if (is(type, "error")) {
        Value code = find(message, "code", NULL), text = find(message, "message", NULL);
        if (code.kind != TEXT || text.kind != TEXT) return;
        fprintf(stderr, "error: %.*s: %.*s\n", (int)code.size, code.text, (int)text.size, text.text);
        if (is(code, "unknown_camera") || is(code, "not_allowed")) exit(1);
        if (is(code, "replaced") || is(code, "version")) exit(1);
        if (is(code, "unknown_session")) lost("the daemon does not know this session");
    }
}
/* Everything that is due now; then waits for messages, up to 10 ms. */
static void turn(void) {
    double now = now_ms();
    for (size_t i = c.count; i-- > 0;)
        if (now >= c.under_way[i].expires_ms) answer_locally(i, "no_verdict");
    if (!c.welcomed && c.give_up_ms > 0 && now - c.disconnected_since_ms > c.give_up_ms) {
        fprintf(stderr, "no welcome within %g ms\n", c.give_up_ms);
        exit(1);
    }
    if (!c.socket) {
        if (now >= c.next_attempt_ms) open_socket();
    } else if (!c.welcomed) {
        if (now >= c.attempt_ends_ms) lost("no welcome");
        else if (now >= c.next_hello_ms) say_hello();
    } else {
        while (c.credits && c.count < MAX_UNDER_WAY && c.next_seq < c.frames)
            if (!send_frame()) { lost("a frame could not be sent"); return; }
        if (now - c.last_sent_ms >= c.heartbeat_ms) {
            Writer w;
            begin(&w, 1, "heartbeat");
            put_text(&w, "sent_ns"); put_uint(&w, (uint64_t)(1e6 * now));
            send_header(&w, false);
        }
        if (c.credits || c.count) c.idle_since_ms = now;
        if (now - c.last_heard_ms > 4 * c.heartbeat_ms) lost("the daemon is silent");
        else if (now - c.idle_since_ms > STALL_MS) lost("the daemon gave no credit back");
    }
    zmq_pollitem_t item = {.socket = c.socket, .events = ZMQ_POLLIN};
    zmq_poll(&item, c.socket ? 1 : 0, 10);
    while (c.socket) {
        zmq_msg_t message;
        zmq_msg_init(&message);
        int size = zmq_msg_recv(&message, c.socket, ZMQ_DONTWAIT);
        if (size >= 0) heard(zmq_msg_data(&message), (size_t)size);
        zmq_msg_close(&message);
        if (size < 0) break;
    }
}
static void usage(const char *problem) { fprintf(stderr, "%s; see the top of client.c\n", problem); exit(2); }

static void read_arguments(int argc, char **argv) {
    if (argc < 3) usage("ENDPOINT and CAMERA are needed");
    c.endpoint = argv[1];
    c.camera = argv[2];
    for (int i = 3; i < argc; i++) {
        int left = argc - i - 1;
        const char *name = argv[i];
        if (!strcmp(name, "--size") && left >= 2) {
            c.width = strtoull(argv[++i], 0, 10);
            c.height = strtoull(argv[++i], 0, 10);
        } else if (!strcmp(name, "--keys") && left >= 3) {
            c.server_public = argv[++i];
            c.public_key = argv[++i];
            c.secret_key = argv[++i];
        } else if (!strcmp(name, "--frames") && left) c.frames = strtoull(argv[++i], 0, 10);
        else if (!strcmp(name, "--format") && left) c.format = argv[++i];
        else if (!strcmp(name, "--pixels") && left) c.pixels_file = argv[++i];
        else if (!strcmp(name, "--code") && left) c.code = argv[++i];
        else if (!strcmp(name, "--deadline-ms") && left) c.deadline_ms = strtod(argv[++i], 0);
        else if (!strcmp(name, "--grace-ms") && left) c.grace_ms = strtod(argv[++i], 0);
        else if (!strcmp(name, "--give-up-ms") && left) c.give_up_ms = strtod(argv[++i], 0);
        else usage(name);
    }
    if (strcmp(c.format, "mono8") && strcmp(c.format, "rgb8")) usage("--format is mono8 or rgb8");
    if (!c.width || !c.height || c.width > 1 << 20 || c.height > 1 << 20) usage("--size takes 1 to 2^20 pixels a side");
    c.pixel_bytes = (size_t)(c.width * c.height) * (strcmp(c.format, "rgb8") ? 1 : 3);
    c.pixels = malloc(c.pixel_bytes);
    if (!c.pixels) usage("no memory for a frame");
    if (c.pixels_file) {
        FILE *file = fopen(c.pixels_file, "rb");
        if (!file || fread(c.pixels, 1, c.pixel_bytes, file) != c.pixel_bytes) usage("--pixels holds less than a frame");
        fclose(file);
    }
}
int main(int argc, char **argv) {
    read_arguments(argc, argv);
    FILE *random = fopen("/dev/urandom", "rb");
    if (!random || fread(&c.session, sizeof c.session, 1, random) != 1) usage("no random numbers");
    fclose(random);
    c.session >>= 1; /* 63 bits */
    setvbuf(stdout, NULL, _IOLBF, 0);
    c.disconnected_since_ms = now_ms();
    c.context = zmq_ctx_new();
    while (c.next_seq < c.frames || c.count) turn();
    if (c.socket && c.welcomed) {
        Writer w;
        begin(&w, 0, "bye");
        set_int(ZMQ_LINGER, 200);
        send_header(&w, false);
    }
    if (c.socket) zmq_close(c.socket);
    zmq_ctx_term(c.context);
    free(c.pixels);
    if (c.late) fprintf(stderr, "late verdicts: %" PRIu64 "\n", c.late);
    return c.unanswered ? 3 : 0;
}
