/* A disk on which no file grows while the file that QUOTA names is there; loaded by LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    const char *control = getenv("QUOTA");
    struct stat64 found;
    if (control && access(control, F_OK) == 0 && fstat64(file, &found) == 0 &&
        at + (off64_t)size > found.st_size) {
        errno = EDQUOT;
        return -1;
    }
    return ((ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64"))(
        file, data, size, at);
}
