//! Who is who, and what each may.

use std::collections::BTreeMap;

use http::HeaderValue;

use super::*;
use crate::config::Config;

const NOW: Timestamp = Timestamp(1000);

fn access(more: &str) -> Access {
    let env: BTreeMap<String, String> =
        [("KEY_A".to_owned(), "sk-a".to_owned()), ("KEY_B".to_owned(), "sk-b".to_owned())].into();
    let text = format!(
        "[tenants.a]\nkeys = [{{ env = \"KEY_A\" }}]\n{more}\n[tenants.b]\nkeys = [{{ env = \"KEY_B\" }}]\n\
         [backends.x]\nbase_url = \"http://127.0.0.1:1\"\nmodels = [\"*\"]\n"
    );
    Config::from_text("test", &text, &env).unwrap().access
}

fn tenants(more: &str) -> Tenants {
    let tenants = Tenants::new(Pepper::of(b"secret"), Vec::new(), Alerts::none());
    set(&tenants, more);
    tenants
}

fn set(tenants: &Tenants, more: &str) {
    tenants.meet(&access(more), NOW);
    tenants.set(&access(more), NOW);
}

fn caller(tenants: &Tenants, key: &str) -> Result<Identified, String> {
    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", HeaderValue::from_str(key).unwrap());
    tenants.identify(&headers, NOW).map_err(|refusal| refusal.code.into_owned())
}

fn identified(tenants: &Tenants, name: &'static str, value: &str) -> Option<String> {
    let mut headers = HeaderMap::new();
    headers.insert(name, HeaderValue::from_str(value).unwrap());
    tenants.identify(&headers, NOW).ok().map(|caller| caller.account().id.to_string())
}

#[test]
fn a_key_names_its_tenant_in_either_header() {
    let tenants = tenants("");
    assert_eq!(identified(&tenants, "authorization", "Bearer sk-a").as_deref(), Some("a"));
    assert_eq!(identified(&tenants, "authorization", "bearer  sk-b ").as_deref(), Some("b"));
    assert_eq!(identified(&tenants, "x-api-key", "sk-b").as_deref(), Some("b"));
    for wrong in ["Bearer sk-c", "Bearer", "Basic sk-a", "Bearer ", "sk-a"] {
        assert_eq!(identified(&tenants, "authorization", wrong), None, "{wrong}");
    }
    let none = tenants.identify(&HeaderMap::new(), NOW);
    assert_eq!(none.err().map(|refusal| refusal.code).as_deref(), Some("missing_api_key"));
}

#[test]
fn quotas_outlive_a_change_of_other_accounts_and_keys() {
    let tenants = tenants("requests_per_minute = 1");
    let (made, key) = Record::make(
        &tenants.pepper,
        &Chance::system(),
        NewKey { tenant: "a".into(), ..NewKey::default() },
        Timestamp(0),
    );
    let open = admission::quota(&crate::config::Limits::default());
    let asked = tenants.asked(NOW, Dialect::OpenAi);
    let admit = |key: &str| {
        let caller = caller(&tenants, key)?;
        caller.admit("m", &open, Demand::default(), asked).map_err(|refusal| refusal.code.into_owned())
    };
    admit("sk-a").unwrap().settle(Demand::default());
    tenants.put(vec![made]);
    assert_eq!(admit(&key).err().as_deref(), Some("rate_limit_exceeded"), "one tenant, one quota");
    set(&tenants, "requests_per_minute = 1\nshare = 7");
    assert_eq!(admit("sk-a").err().as_deref(), Some("rate_limit_exceeded"));
    assert!(admit("sk-b").is_ok());
    set(&tenants, "requests_per_minute = 2");
    assert!(admit("sk-a").is_ok());
}

#[test]
fn other_settings_forget_neither_money_nor_what_runs() {
    let with = |settings: &str| format!("concurrent = 1\nbudget.day_usd = 1\n{settings}");
    let tenants = tenants(&with(""));
    let open = admission::quota(&Limits::default());
    let asked = tenants.asked(NOW, Dialect::OpenAi);
    let a = TenantId::from("a");
    let half = Money::dollars(1).permille(500);
    let admit = || {
        let caller = caller(&tenants, "sk-a").unwrap();
        let mut admission = caller.admit("m", &open, Demand::default(), asked).map_err(|error| error.code)?;
        admission.reservation =
            Some(caller.account().purse().reserve(half, NOW).map_err(|error| error.code)?);
        Ok::<_, std::borrow::Cow<'static, str>>(admission)
    };
    let running = admit().unwrap();
    set(&tenants, &with("share = 7"));
    assert_eq!(admit().err().as_deref(), Some("rate_limit_exceeded"), "one runs");
    tenants.spent(&a, half.permille(500), NOW);
    // What was reserved by the old settings is settled by the new ones.
    running.settle(Demand::default()).unwrap().settle(half, NOW);
    set(&tenants, &with("share = 8"));
    let purse = tenants.account(&a).unwrap().purse().clone();
    assert_eq!(purse.standing(NOW).first().map(|(_, spent, _)| *spent), Some(half.permille(1500)));
    assert_eq!(admit().err().as_deref(), Some("insufficient_quota"));
    set(&tenants, &with("budget.month_usd = 9\nshare = 8"));
    assert_eq!(purse.standing(NOW).len(), 2, "a month has what the day has");
    // Who is not configured any more may have something under way.
    let b = access("").tenants().iter().filter(|tenant| tenant.id != a).cloned().collect();
    tenants.set(&Access::Tenants(b), NOW);
    tenants.spent(&a, half, NOW);
    set(&tenants, &with(""));
    assert_eq!(tenants.account(&a).unwrap().purse().standing(NOW)[0].1, half.permille(2500));
}

#[test]
fn a_budget_that_comes_later_is_to_know_what_was_spent() {
    let tenants = tenants("");
    assert_eq!(tenants.meet(&access(""), NOW).len(), 0, "nobody is limited");
    tenants.spent(&"a".into(), Money(7), NOW);
    let later = access("budget.day_usd = 1");
    let unknown = tenants.meet(&later, Timestamp(5000));
    assert_eq!(unknown.iter().map(|purse| purse.since()).collect::<Vec<_>>(), [NOW]);
    let before =
        crate::budgets::Before { period: offpeak_core::budget::Period::Day, spent: Money(3), told: 0 };
    unknown[0].remember(&[before], NOW);
    assert!(tenants.meet(&later, NOW).is_empty());
    tenants.set(&later, NOW);
    assert_eq!(tenants.account(&"a".into()).unwrap().purse().standing(NOW)[0].1, Money(10));
}

#[test]
fn a_key_and_the_one_in_its_place_have_one_quota() {
    let limits = Limits { requests_per_minute: std::num::NonZeroU32::new(3), ..Limits::default() };
    let pepper = Pepper::of(b"secret");
    let make = |at| {
        let new = NewKey { tenant: "a".into(), limits: limits.clone(), ..NewKey::default() };
        Record::make(&pepper, &Chance::system(), new, Timestamp(at))
    };
    let (first, second, third, other) = (make(1), make(2), make(3), make(4));
    let rotated = |old: &Record, new: &Record| Record { replaced_by: Some(new.id.clone()), ..old.clone() };
    let open = admission::quota(&Limits::default());
    let is_let_in = |tenants: &Tenants, key: &str| {
        let asked = tenants.asked(NOW, Dialect::OpenAi);
        let admitted = caller(tenants, key).unwrap().admit("m", &open, Demand::default(), asked);
        admitted.is_ok_and(|admission| admission.settle(Demand::default()).is_none())
    };
    let running = tenants("");
    running.put(vec![first.0.clone(), other.0.clone()]);
    assert!(is_let_in(&running, &first.1));
    running.put(vec![rotated(&first.0, &second.0), second.0.clone()]);
    assert!(is_let_in(&running, &second.1));
    running.put(vec![rotated(&second.0, &third.0), third.0.clone()]);
    assert!(is_let_in(&running, &third.1));
    for key in [&first.1, &second.1, &third.1] {
        assert!(!is_let_in(&running, key), "three are taken");
    }
    assert!(is_let_in(&running, &other.1));
    // After a restart too, whatever order the records come in.
    let restarted =
        Tenants::new(pepper.clone(), running.records().into_iter().rev().collect(), Alerts::none());
    set(&restarted, "");
    let let_in = [&first.1, &second.1, &third.1, &first.1].map(|key| is_let_in(&restarted, key));
    assert_eq!(let_in, [true, true, true, false]);
}

#[test]
fn scopes_and_ends_of_keys_hold() {
    let tenants = tenants("models = [\"gpt-*\"]");
    let scopes = keys::Scopes {
        models: vec!["gpt-4o*".into(), "o3".into()],
        backends: vec!["x".into()],
        endpoints: vec!["/v1/embeddings".into()],
        sla: vec![SlaScope::Deferred],
    };
    let new = NewKey { tenant: "a".into(), scopes, ..NewKey::default() };
    let (record, key) = Record::make(&tenants.pepper, &Chance::system(), new, Timestamp(0));
    tenants.put(vec![record.clone()]);
    let caller_of = || caller(&tenants, &key);
    let known = caller_of().unwrap();
    assert!(known.may_use_model("gpt-4o-mini"));
    assert!(!known.may_use_model("gpt-5") && !known.may_use_model("o3"), "key and tenant both decide");
    assert!(known.may_use_backend("x") && !known.may_use_backend("y"));
    assert!(known.check_endpoint("/v1/embeddings").is_ok());
    assert_eq!(known.check_endpoint("/v1/responses").unwrap_err().code, "out_of_scope");
    assert!(known.check_sla(SlaScope::Deferred).is_ok() && known.check_sla(SlaScope::Realtime).is_err());
    tenants.put(vec![Record { expires_at: Some(NOW), ..record.clone() }]);
    assert_eq!(caller_of().err().as_deref(), Some("expired_api_key"));
    tenants.put(vec![Record { tenant: "gone".into(), ..record }]);
    assert_eq!(caller_of().err().as_deref(), Some("invalid_api_key"));
}
