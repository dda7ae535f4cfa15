/* A disk whose flushes take as long as a file says; loaded into the daemon by LD_PRELOAD.
 *
 * SLOW_FLUSH names that file. It holds the milliseconds that each flush takes, and is read again
 * every 10 ms, so that a flush under way can be let go. Each flush that it held adds a byte to the
 * file of the same name with ".held": "b" when it begins, "e" when it ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define STEP_MS 10

static long asked_ms(const char *control) {
    char text[32] = "";
    int file = open(control, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    return size > 0 ? atol(text) : 0;
}

static void note(const char *control, char what) {
    char path[4096];
    snprintf(path, sizeof path, "%s.held", control);
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file >= 0 && write(file, &what, 1) == 1)
        close(file);
}

static void hold(void) {
    const struct timespec step = {0, STEP_MS * 1000000L};
    const char *control = getenv("SLOW_FLUSH");
    if (!control || !asked_ms(control))
        return;
    note(control, 'b');
    for (long held_ms = 0; held_ms < asked_ms(control); held_ms += STEP_MS)
        nanosleep(&step, NULL);
    note(control, 'e');
}

int fdatasync(int file) {
    hold();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}

int fsync(int file) {
    hold();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}
