/* Preloaded into a machine's QEMU: while the file $BED_HOLD exists, QEMU neither starts (libvirt then shows the machine
 * as starting up) nor ends when it is told to (SIGTERM, which libvirt sends once the guest has powered off: shown as
 * shutting down). As QEMU on slow storage would. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static const char *hold;

static void wait_until_free(void)
{
    while (access(hold, F_OK) == 0)
        usleep(10000);
}

static void set_blocked(int how)
{
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    pthread_sigmask(how, &end, NULL);
}

static void *take_sigterm(void *unused)
{
    sigset_t end;
    int taken;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    for (;;) {
        sigwait(&end, &taken);
        wait_until_free();
        set_blocked(SIG_UNBLOCK); /* in this thread only: it runs QEMU's own handler */
        kill(getpid(), SIGTERM);
        usleep(100000);
        set_blocked(SIG_BLOCK);
    }
    return unused;
}

__attribute__((constructor)) static void begin(void)
{
    pthread_t thread;
    hold = getenv("BED_HOLD");
    if (hold == NULL)
        return;
    wait_until_free();
    set_blocked(SIG_BLOCK); /* inherited by every thread to come */
    pthread_create(&thread, NULL, take_sigterm, NULL);
}
