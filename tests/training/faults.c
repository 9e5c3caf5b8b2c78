/* File operations that fail: preloaded (LD_PRELOAD), armed by fault_arm, counted from then on.

   Counts each operation that changes something in a folder: on a path below it, or on a file
   opened there. The one numbered fault_at, from 0, meets what `how` says:
     KILL   the process is killed before it,
     HALF   it is killed after it, and a write is one of half as many bytes,
     > 0    it fails with this errno, once, and is not done,
     < FULL a write writes half, and every one from then on fails with errno FULL - how. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = -1, HALF = -2, FULL = -1000 };

static char folder[PATH_MAX];
static long fault_at = -1, count;
static int fault_how, is_full;

void fault_arm(const char *path, long at, int how) {
    snprintf(folder, sizeof folder, "%s/", path);
    fault_at = at, fault_how = how, count = 0, is_full = 0;
}

void fault_disarm(void) { folder[0] = '\0'; }

long fault_count(void) { return count; }

static int inside(const char *path) {
    size_t length = strlen(folder);
    /* the folder itself too, which is made and removed */
    return length && path &&
           (!strncmp(path, folder, length) || (strlen(path) == length - 1 && !strncmp(path, folder, length - 1)));
}

static int inside_file(int file) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = '\0';
    return inside(path);
}

static void die(void) { kill(getpid(), SIGKILL); }

/* Whether the next operation is the one to fail, with errno set; kills where that is asked for. */
static int fails(void) {
    int now = count++ == fault_at;
    if (now && fault_how == KILL) die();
    if (now && fault_how > 0) {
        errno = fault_how;
        return 1;
    }
    return 0;
}

static void after(void) {
    if (count - 1 == fault_at && fault_how == HALF) die();
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CALL(kind, ours, ...)                          \
    if (!(ours)) return real(__VA_ARGS__);             \
    if (fails()) return -1;                            \
    kind result = real(__VA_ARGS__);                   \
    int kept = errno;                                  \
    after();                                           \
    errno = kept;                                      \
    return result

static int changes(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC); }

static mode_t mode_of(int flags, va_list arguments) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(name)                                             \
    int name(const char *path, int flags, ...) {               \
        REAL(name);                                            \
        va_list arguments;                                     \
        va_start(arguments, flags);                            \
        mode_t mode = mode_of(flags, arguments);               \
        va_end(arguments);                                     \
        CALL(int, inside(path) && changes(flags), path, flags, mode); \
    }
#define OPENAT(name)                                           \
    int name(int at, const char *path, int flags, ...) {       \
        REAL(name);                                            \
        va_list arguments;                                     \
        va_start(arguments, flags);                            \
        mode_t mode = mode_of(flags, arguments);               \
        va_end(arguments);                                     \
        CALL(int, inside(path) && changes(flags), at, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* The bytes of `size` to write, less where the write is the one to be half done; -1 to fail. */
static ssize_t allowed(size_t size) {
    if (is_full) {
        count++;
        errno = FULL - fault_how;
        return -1;
    }
    if (count == fault_at && fault_how <= FULL) {
        is_full = 1;
        count++;
        return size / 2;
    }
    if (fails()) return -1;
    return count - 1 == fault_at && fault_how == HALF ? size / 2 : size;
}

#define WRITE(name, parameters, ...)                           \
    ssize_t name parameters {                                  \
        REAL(name);                                            \
        if (!inside_file(file)) return real(__VA_ARGS__);      \
        ssize_t most = allowed(size);                          \
        if (most < 0) return -1;                               \
        size = most;                                           \
        ssize_t result = real(__VA_ARGS__);                    \
        int kept = errno;                                      \
        after();                                               \
        errno = kept;                                          \
        return result;                                         \
    }
WRITE(write, (int file, const void *bytes, size_t size), file, bytes, size)
WRITE(pwrite, (int file, const void *bytes, size_t size, off_t offset), file, bytes, size, offset)
WRITE(pwrite64, (int file, const void *bytes, size_t size, off64_t offset), file, bytes, size, offset)

ssize_t writev(int file, const struct iovec *parts, int number) {
    REAL(writev);
    CALL(ssize_t, inside_file(file), file, parts, number);
}
int fsync(int file) { REAL(fsync); CALL(int, inside_file(file), file); }
int fdatasync(int file) { REAL(fdatasync); CALL(int, inside_file(file), file); }
int ftruncate(int file, off_t size) { REAL(ftruncate); CALL(int, inside_file(file), file, size); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); CALL(int, inside_file(file), file, size); }
int rename(const char *a, const char *b) { REAL(rename); CALL(int, inside(a) || inside(b), a, b); }
int renameat(int i, const char *a, int j, const char *b) {
    REAL(renameat);
    CALL(int, inside(a) || inside(b), i, a, j, b);
}
int link(const char *a, const char *b) { REAL(link); CALL(int, inside(b), a, b); }
int linkat(int i, const char *a, int j, const char *b, int flags) {
    REAL(linkat);
    CALL(int, inside(b), i, a, j, b, flags);
}
int unlink(const char *path) { REAL(unlink); CALL(int, inside(path), path); }
int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat); /* of shutil.rmtree, by a folder that is open and a name in it */
    CALL(int, inside(path) || (path[0] != '/' && inside_file(at)), at, path, flags);
}
int rmdir(const char *path) { REAL(rmdir); CALL(int, inside(path), path); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); CALL(int, inside(path), path, mode); }
