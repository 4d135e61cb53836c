/* Writes numbered records to one file for as long as the guest runs, and says on the console which ones are safe.
 *
 *   writer <name> <file> <pace in ms>
 *
 * Record n stands at offset (n-1)*22: "%010d %010d\n", its number and the guest's uptime in ms. `ACK <name> <n> <uptime>`
 * is printed only after fsync returned, so a test may demand every acknowledged record. A write that fails is reported as
 * `WRITE-ERROR <name> <n> <errno>` and tried again at the same place, so that numbers stay without gaps and duplicates.
 * After a reboot numbering goes on behind the last full record.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RECORD 22
#define ERROR_PACE_MS 250 /* a broken disk must not flood the console */

static long uptime_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

static void pause_ms(long ms)
{
    struct timespec pause = {ms / 1000, (ms % 1000) * 1000000L};
    nanosleep(&pause, NULL);
}

/* One write(2) per line: the tty layer keeps it in one piece among several writers. */
static void say(const char *word, const char *name, long n, long value)
{
    char line[96];
    int length = snprintf(line, sizeof line, "%s %s %ld %ld\n", word, name, n, value);
    if (write(STDOUT_FILENO, line, length) != length)
        _exit(1);
}

static int store(int fd, long n)
{
    char record[48];
    ssize_t done;
    snprintf(record, sizeof record, "%010ld %010ld\n", n, uptime_ms());
    done = pwrite(fd, record, RECORD, (off_t)(n - 1) * RECORD);
    if (done != RECORD)
        return done < 0 ? errno : ENOSPC;
    return fsync(fd) == 0 ? 0 : errno;
}

int main(int argc, char **argv)
{
    long pace, n;
    int fd;
    if (argc != 4)
        return 2;
    pace = atol(argv[3]);
    while ((fd = open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0644)) < 0) {
        say("WRITE-ERROR", argv[1], 0, errno);
        pause_ms(ERROR_PACE_MS);
    }
    n = lseek(fd, 0, SEEK_END) / RECORD + 1;
    for (;;) {
        int error = store(fd, n);
        if (error) {
            say("WRITE-ERROR", argv[1], n, error);
            pause_ms(ERROR_PACE_MS);
            continue;
        }
        say("ACK", argv[1], n, uptime_ms());
        n++;
        pause_ms(pace);
    }
}
