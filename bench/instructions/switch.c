/* Turns callgrind's counting on and off from within the program that is counted. */
#include <valgrind/callgrind.h>

void switch_on(void) {
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

/* Writes a profile with this label. */
void switch_off(const char *label) {
    CALLGRIND_DUMP_STATS_AT(label);
    CALLGRIND_STOP_INSTRUMENTATION;
}
