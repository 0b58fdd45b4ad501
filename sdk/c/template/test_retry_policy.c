// The decisions, on your own machine, without a daemon and without WebAssembly. `offpeak plugin build` runs these first.

#include "my_plugin.c"

#include <stdio.h>

// What the bindings would bring; no test comes here.
void offpeak_plugin_host_config(retry_policy_string_t *ret) { (void)ret, abort(); }
uint64_t offpeak_plugin_host_now(void) { abort(); }
void offpeak_plugin_host_log(offpeak_plugin_host_level_t level, retry_policy_string_t *text) { (void)level, (void)text, abort(); }
void retry_policy_string_set(retry_policy_string_t *ret, const char *text) { (void)ret, (void)text, abort(); }
void retry_policy_string_free(retry_policy_string_t *text) { (void)text, abort(); }
void retry_policy_string_dup(retry_policy_string_t *ret, const char *text) { (void)ret, (void)text, abort(); }
void exports_offpeak_plugin_judging_attempt_free(attempt_t *attempt) { (void)attempt, abort(); }

static int failures = 0;

static void expect(bool is_right, const char *what) {
  if (!is_right) {
    fprintf(stderr, "wrong: %s\n", what);
    failures++;
  }
}

static uint8_t meaning(uint16_t status, uint64_t left_ms) {
  attempt_t attempt = {.ending = {.tag = EXPORTS_OFFPEAK_PLUGIN_JUDGING_ENDING_ANSWERED, .val = {.answered = status}},
                       .left_ms = left_ms};
  return judge(&attempt);
}

int main(void) {
  expect(meaning(503, 2 * HURRY_MS) == EXPORTS_OFFPEAK_PLUGIN_JUDGING_MEANING_TEMPORARY, "what passes is tried again");
  expect(meaning(503, HURRY_MS / 2) == EXPORTS_OFFPEAK_PLUGIN_JUDGING_MEANING_RUN_NOW, "near its deadline it is run at once");
  expect(meaning(400, 2 * HURRY_MS) == EXPORTS_OFFPEAK_PLUGIN_JUDGING_MEANING_PERMANENT, "what is wrong stays wrong");
  return failures == 0 ? 0 : 1;
}
