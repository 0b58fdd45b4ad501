// A cost policy: what the provider charges by the price book, in whole pico-dollars, 10^-12 dollars.

#include "cost_policy.h" // `offpeak plugin build` writes it to build/bindings/: the contract's types, with their documentation

#include <stdlib.h>
#include <string.h>

typedef exports_offpeak_plugin_costing_sale_t sale_t;
typedef exports_offpeak_plugin_costing_outcome_t outcome_t;
typedef exports_offpeak_plugin_costing_list_outcome_t outcomes_t;
typedef exports_offpeak_plugin_costing_charge_t charge_t;

// A price of the book; -1 if it has none.
static int64_t rate(const sale_t *sale, const char *name) {
  for (size_t i = 0; i < sale->rates.len; i++) {
    const cost_policy_string_t *known = &sale->rates.ptr[i].name;
    if (known->len == strlen(name) && memcmp(known->ptr, name, known->len) == 0) {
      return sale->rates.ptr[i].price;
    }
  }
  return -1;
}

// The decision, from plain values alone: this is what tests call. Who pays is filled in by its caller.
static charge_t charge(const sale_t *sale, const outcome_t *outcome) {
  charge_t charge = {.priced = true};
  if (!outcome->usage.is_some) {
    return charge; // the provider counted nothing, so it charges nothing
  }
  int64_t input = rate(sale, "input_cost_per_token"), output = rate(sale, "output_cost_per_token");
  if (input < 0 || output < 0) {
    charge.priced = false;
    return charge;
  }
  int64_t full = (int64_t)outcome->usage.val.input * input + (int64_t)outcome->usage.val.output * output;
  charge.cost = full / 1000 * sale->price_permille + full % 1000 * sale->price_permille / 1000;
  charge.realtime_cost = outcome->wasted ? 0 : full; // what nobody got would not have been bought in real time
  return charge;
}

// What the daemon calls; wit/cost-policy.wit says when and with what. What comes in belongs to these functions, what goes out to
// the daemon.

void exports_offpeak_plugin_costing_describe(exports_offpeak_plugin_costing_description_t *ret) {
  cost_policy_string_dup(&ret->name, "my-plugin");
  cost_policy_string_dup(&ret->version, "1");
}

bool exports_offpeak_plugin_costing_assess(sale_t *sale, outcomes_t *outcomes,
                                           exports_offpeak_plugin_costing_list_charge_t *ret, cost_policy_string_t *err) {
  (void)err;
  ret->len = outcomes->len;
  ret->ptr = calloc(outcomes->len > 0 ? outcomes->len : 1, sizeof *ret->ptr);
  if (ret->ptr == NULL) {
    abort();
  }
  for (size_t i = 0; i < outcomes->len; i++) {
    const cost_policy_string_t *tenant = &outcomes->ptr[i].tenant;
    ret->ptr[i] = charge(sale, &outcomes->ptr[i]);
    cost_policy_string_dup_n(&ret->ptr[i].tenant, (const char *)tenant->ptr, tenant->len);
  }
  exports_offpeak_plugin_costing_sale_free(sale);
  exports_offpeak_plugin_costing_list_outcome_free(outcomes);
  return true;
}
