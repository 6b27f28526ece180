/* Shifts what a process takes for the time of day: loaded before the C library (LD_PRELOAD), by CLOCK_SHIFT_S
 * seconds. The monotonic clock stays as it is. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    long failed = syscall(SYS_clock_gettime, clock, now);
    const char *shift = getenv("CLOCK_SHIFT_S");
    if (failed == 0 && clock == CLOCK_REALTIME && shift != NULL)
        now->tv_sec += atol(shift);
    return (int)failed;
}
