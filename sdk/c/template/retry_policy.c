// A retry policy: near its deadline a request that passes is run at once.

#include "retry_policy.h" // `offpeak plugin build` writes it to build/bindings/: the contract's types, with their documentation

#include <stdlib.h>

typedef exports_offpeak_plugin_judging_attempt_t attempt_t;
typedef exports_offpeak_plugin_judging_meaning_t meaning_t;

enum { HURRY_MS = 600000 };

// The decision, from plain values alone: this is what tests call.
static uint8_t judge(const attempt_t *attempt) {
  if (attempt->ending.tag == EXPORTS_OFFPEAK_PLUGIN_JUDGING_ENDING_ANSWERED) {
    uint16_t status = attempt->ending.val.answered;
    bool passes = status == 408 || status == 409 || status == 429 || status >= 500;
    if (!passes) {
      return EXPORTS_OFFPEAK_PLUGIN_JUDGING_MEANING_PERMANENT; // the request is wrong, and would be wrong again
    }
  }
  return attempt->left_ms < HURRY_MS ? EXPORTS_OFFPEAK_PLUGIN_JUDGING_MEANING_RUN_NOW
                                     : EXPORTS_OFFPEAK_PLUGIN_JUDGING_MEANING_TEMPORARY;
}

// What the daemon calls; wit/retry-policy.wit says when and with what. What comes in belongs to these functions, what goes out to
// the daemon.

void exports_offpeak_plugin_judging_describe(exports_offpeak_plugin_judging_description_t *ret) {
  retry_policy_string_dup(&ret->name, "my-plugin");
  retry_policy_string_dup(&ret->version, "1");
}

void exports_offpeak_plugin_judging_judge(attempt_t *attempt, meaning_t *ret) {
  ret->tag = judge(attempt);
  ret->val.temporary.is_some = false; // after the usual delay
  exports_offpeak_plugin_judging_attempt_free(attempt);
}
