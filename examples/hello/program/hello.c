// A small WASI preview-1 program without a C library, for the demo and for tests.
//
// It prints "hello from <argv[0]>" and then works through its arguments in order:
//
//	--lines N      print N numbered lines
//	--env NAME     print NAME=value
//	--args         print all arguments
//	--err TEXT     print TEXT to standard error
//	--sleep MS     sleep that many milliseconds
//	--cat PATH     print a file, or what went wrong
//	--write PATH   write a line to a file, or print what went wrong
//	--grow KIB     grow the memory, and print whether that went well
//	--spin         loop for ever
//	--trap         execute an unreachable instruction
//	--exit N       end with an exit code
//
// Rebuilt by `task wasm` (clang-19 and lld-19):
//
//	clang-19 --target=wasm32-unknown-unknown -Oz -nostdlib -fno-builtin -mbulk-memory \
//	  -Wl,--no-entry,--export=_start,--strip-all,-z,stack-size=8192,--initial-memory=131072 -o hello.wasm hello.c
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))
WASI(args_sizes_get) u32 args_sizes_get(u32 *count, u32 *size);
WASI(args_get) u32 args_get(char **argv, char *buf);
WASI(environ_sizes_get) u32 environ_sizes_get(u32 *count, u32 *size);
WASI(environ_get) u32 environ_get(char **env, char *buf);
WASI(fd_write) u32 fd_write(u32 fd, const void *iovs, u32 n, u32 *written);
WASI(fd_read) u32 fd_read(u32 fd, const void *iovs, u32 n, u32 *got);
WASI(fd_close) u32 fd_close(u32 fd);
WASI(fd_prestat_get) u32 fd_prestat_get(u32 fd, u32 *out);
WASI(fd_prestat_dir_name) u32 fd_prestat_dir_name(u32 fd, char *path, u32 len);
WASI(path_open) u32 path_open(u32 dir, u32 lookup, const char *path, u32 len, u32 oflags, u64 rights, u64 inheriting, u32 flags, u32 *fd);
WASI(poll_oneoff) u32 poll_oneoff(const void *in, void *out, u32 n, u32 *events);
WASI(proc_exit) _Noreturn void proc_exit(u32 code);

struct iov { const char *p; u32 n; };

static char args_buf[8192], env_buf[16384];
static char *argv[512], *envp[1024];

static u32 len(const char *s) { u32 n = 0; while (s[n]) n++; return n; }

static u32 same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

static void print(u32 fd, const char *s, u32 n) {
  while (n) {
    struct iov v = {s, n};
    u32 written = 0;
    if (fd_write(fd, &v, 1, &written) || !written) proc_exit(74);
    s += written, n -= written;
  }
}

static void put(const char *s) { print(1, s, len(s)); }

static void number(u32 v) {
  char b[10];
  u32 i = 10;
  do b[--i] = '0' + v % 10; while (v /= 10);
  print(1, b + i, 10 - i);
}

static u32 parse(const char *s) {
  u32 v = 0;
  for (; *s >= '0' && *s <= '9'; s++) v = v * 10 + (*s - '0');
  return v;
}

static void nap(u32 ms) {
  // subscription: userdata, tag 0 (clock), clock 1 (monotonic), timeout, precision, flags
  u64 sub[6] = {0, 0, 1, (u64)ms * 1000000, 0, 0}, event[4];
  u32 n;
  poll_oneoff(sub, event, 1, &n);
}

// open finds the mounted folder that a path is in; it returns 0 or an error number.
static u32 open(const char *path, u32 oflags, u64 rights, u32 *fd) {
  u32 best = 0, best_len = 0;
  for (u32 dir = 3;; dir++) {
    u32 stat[2];
    char name[256];
    if (fd_prestat_get(dir, stat)) break;
    if (stat[1] > sizeof name || fd_prestat_dir_name(dir, name, stat[1])) continue;
    u32 i = 0;
    while (i < stat[1] && path[i] == name[i]) i++;
    if (i == stat[1] && path[i] == '/' && i + 1 > best_len) best = dir, best_len = i + 1;
  }
  if (!best) return 44; // noent
  return path_open(best, 1, path + best_len, len(path + best_len), oflags, rights, 0, 0, fd);
}

static void failed(const char *path, u32 errno) {
  put(path), put(": error "), number(errno), put("\n");
}

static void cat(const char *path) {
  u32 fd, errno = open(path, 0, 2, &fd);
  if (errno) { failed(path, errno); return; }
  char buf[1024];
  for (;;) {
    struct iov v = {buf, sizeof buf};
    u32 got = 0;
    if (fd_read(fd, &v, 1, &got) || !got) break;
    print(1, buf, got);
  }
  fd_close(fd);
}

static void write_file(const char *path) {
  u32 fd, errno = open(path, 1 | 8, 64, &fd); // creat, trunc; fd_write
  if (errno) { failed(path, errno); return; }
  print(fd, "written by hello\n", 17);
  fd_close(fd);
  put("wrote "), put(path), put("\n");
}

void _start(void) {
  u32 argc, envc, size;
  args_sizes_get(&argc, &size);
  if (argc >= 512 || size > sizeof args_buf) proc_exit(7);
  args_get(argv, args_buf);
  environ_sizes_get(&envc, &size);
  if (envc >= 1024 || size > sizeof env_buf) proc_exit(7);
  environ_get(envp, env_buf);

  put("hello from "), put(argc ? argv[0] : "nobody"), put("\n");
  for (u32 i = 1; i < argc; i++) {
    const char *opt = argv[i], *val = i + 1 < argc ? argv[i + 1] : "";
    if (same(opt, "--args")) {
      for (u32 j = 0; j < argc; j++) put(j ? " " : "args: "), put(argv[j]);
      put("\n");
      continue;
    }
    if (same(opt, "--spin")) for (volatile u32 n = 0;; n++) {}
    if (same(opt, "--trap")) __builtin_trap();
    i++;
    if (same(opt, "--lines")) {
      for (u32 n = 1; n <= parse(val); n++) put("line "), number(n), put("\n");
    } else if (same(opt, "--env")) {
      u32 n = len(val), found = 0;
      for (u32 j = 0; j < envc; j++) {
        u32 k = 0;
        while (k < n && envp[j][k] == val[k]) k++;
        if (k == n && envp[j][k] == '=') put(envp[j]), put("\n"), found = 1;
      }
      if (!found) put(val), put(" is not set\n");
    } else if (same(opt, "--err")) {
      print(2, val, len(val)), print(2, "\n", 1);
    } else if (same(opt, "--sleep")) {
      nap(parse(val));
    } else if (same(opt, "--cat")) {
      cat(val);
    } else if (same(opt, "--write")) {
      write_file(val);
    } else if (same(opt, "--grow")) {
      u32 pages = (parse(val) + 63) / 64;
      put(__builtin_wasm_memory_grow(0, pages) == (u32)-1 ? "no more memory\n" : "grown\n");
    } else if (same(opt, "--exit")) {
      proc_exit(parse(val));
    } else {
      put("unknown argument "), put(opt), put("\n");
      proc_exit(64);
    }
  }
}
