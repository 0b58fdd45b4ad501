// The decisions, on your own machine, without a daemon and without WebAssembly. `offpeak plugin build` runs these first.

#include "my_plugin.c"

#include <stdio.h>

// What the bindings would bring; no test comes here.
void offpeak_plugin_host_config(cost_policy_string_t *ret) { (void)ret, abort(); }
uint64_t offpeak_plugin_host_now(void) { abort(); }
void offpeak_plugin_host_log(offpeak_plugin_host_level_t level, cost_policy_string_t *text) { (void)level, (void)text, abort(); }
void cost_policy_string_set(cost_policy_string_t *ret, const char *text) { (void)ret, (void)text, abort(); }
void cost_policy_string_free(cost_policy_string_t *text) { (void)text, abort(); }
void cost_policy_string_dup(cost_policy_string_t *ret, const char *text) { (void)ret, (void)text, abort(); }
void cost_policy_string_dup_n(cost_policy_string_t *ret, const char *text, size_t n) { (void)ret, (void)text, (void)n, abort(); }
void exports_offpeak_plugin_costing_sale_free(sale_t *sale) { (void)sale, abort(); }
void exports_offpeak_plugin_costing_list_outcome_free(outcomes_t *outcomes) { (void)outcomes, abort(); }

static int failures = 0;

static void expect(bool is_right, const char *what) {
  if (!is_right) {
    fprintf(stderr, "wrong: %s\n", what);
    failures++;
  }
}

int main(void) {
  char input[] = "input_cost_per_token", output[] = "output_cost_per_token";
  exports_offpeak_plugin_costing_rate_t rates[] = {
      {.name = {(uint8_t *)input, sizeof input - 1}, .price = 150000},
      {.name = {(uint8_t *)output, sizeof output - 1}, .price = 600000},
  };
  sale_t sale = {.price_permille = 500, .rates = {rates, 2}}, unknown = {.price_permille = 500};
  outcome_t outcome = {.usage = {.is_some = true, .val = {.input = 1000, .output = 100}}};
  outcome_t wasted = outcome, uncounted = {0};
  wasted.wasted = true;
  expect(charge(&sale, &outcome).cost == 105000000, "a batch costs half");
  expect(charge(&sale, &outcome).realtime_cost == 210000000, "of what it would cost at once");
  expect(charge(&sale, &wasted).realtime_cost == 0, "what nobody got saves nothing");
  expect(charge(&sale, &uncounted).cost == 0, "what was not counted costs nothing");
  expect(!charge(&unknown, &outcome).priced, "what has no price says so");
  return failures == 0 ? 0 : 1;
}
