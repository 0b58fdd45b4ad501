//! Sums over the ledger, by whatever the asker names.

use std::collections::BTreeMap;
use std::ops::Bound;

use offpeak_core::money::Money;
use offpeak_core::outcome::DidItRun;
use offpeak_core::usage::Usage;
use offpeak_core::words::Timestamp;
use offpeak_store::{Kind, Order, Store, StoreError};
use serde::Serialize;

use super::Purpose;
use super::ledger::{self, Entry};

/// Entries that are read at once.
const PAGE: usize = 10_000;

/// What entries can be summed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// Who pays.
    Tenant,
    /// Where it was bought.
    Backend,
    /// What was called.
    Endpoint,
    /// The model.
    Model,
    /// The offer.
    Offer,
    /// The offer's mode.
    Mode,
    /// Why it was sent: first, retry, rescue.
    Purpose,
    /// The day, in UTC.
    Day,
    /// The month, in UTC.
    Month,
}

impl Dimension {
    /// All of them, as users name them.
    pub const ALL: [(&str, Self); 9] = [
        ("tenant", Self::Tenant),
        ("backend", Self::Backend),
        ("endpoint", Self::Endpoint),
        ("model", Self::Model),
        ("offer", Self::Offer),
        ("mode", Self::Mode),
        ("purpose", Self::Purpose),
        ("day", Self::Day),
        ("month", Self::Month),
    ];

    /// The word as users see it.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }

    fn of(self, entry: &Entry) -> String {
        match self {
            Self::Tenant => entry.tenant.to_string(),
            Self::Backend => entry.backend.to_string(),
            Self::Endpoint => entry.endpoint.to_string(),
            Self::Model => entry.model.to_string(),
            Self::Offer => entry.offer.to_string(),
            Self::Mode => entry.mode.to_string(),
            Self::Purpose => entry.purpose.as_str().to_owned(),
            Self::Day => date(entry.at, 10),
            Self::Month => date(entry.at, 7),
        }
    }
}

/// So many characters of the time as people write it, in UTC.
fn date(at: Timestamp, characters: usize) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(at.0);
    humantime::format_rfc3339_seconds(time).to_string().chars().take(characters).collect()
}

/// The names of dimensions, with commas between.
pub fn dimensions(text: &str) -> Result<Vec<Dimension>, String> {
    let mut found = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let known = Dimension::ALL.iter().find(|(name, _)| *name == word).map(|(_, one)| *one);
        let Some(one) = known else {
            let names = Dimension::ALL.map(|(name, _)| name).join(", ");
            return Err(format!("\"{word}\" is nothing that costs can be summed by: use {names}"));
        };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    Ok(found)
}

/// A point in time as people write it: a day (2026-11-25), or RFC 3339; UTC.
pub fn time(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("\"{text}\" is no time: write a day such as 2026-11-25, or 2026-11-25T08:00:00Z");
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339_weak(&whole).map_err(|_| wrong())?;
    let since_1970 = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| wrong())?;
    Ok(Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)))
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Query {
    /// One row for each combination of these.
    pub by: Vec<Dimension>,
    /// From this time on.
    pub from: Timestamp,
    /// Up to, and not including.
    pub to: Timestamp,
    /// Of this tenant alone.
    pub tenant: Option<String>,
}

/// Sums of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Outcomes.
    pub outcomes: u64,
    /// Tokens.
    pub usage: Usage,
    /// What the provider charges.
    pub cost: Money,
    /// What it would have been in real time.
    pub realtime: Money,
    /// Of the cost: attempts after the first.
    pub retries: Money,
    /// Of the cost: what ran in real time because a batch would have been too late.
    pub rescues: Money,
    /// Of the cost: answers that nobody got.
    pub waste: Money,
    /// Outcomes whose tokens were reckoned and not counted.
    pub estimated: u64,
    /// Outcomes without a price.
    pub unpriced: u64,
    /// Calls that may have run; if they did, the provider charges for them and the ledger does not know what.
    pub unknown: u64,
}

impl Sums {
    fn add(&mut self, entry: &Entry) {
        self.outcomes += 1;
        self.usage = self.usage.plus(entry.usage);
        self.cost += entry.cost;
        self.realtime += entry.realtime;
        match entry.purpose {
            Purpose::First => {}
            Purpose::Retry => self.retries += entry.cost,
            Purpose::Rescue => self.rescues += entry.cost,
        }
        if entry.wasted {
            self.waste += entry.cost;
        }
        self.estimated += u64::from(entry.estimated);
        self.unpriced += u64::from(!entry.priced);
        self.unknown += u64::from(entry.ran == DidItRun::Unknown);
    }
}

/// The answer to a query.
#[derive(Debug, Clone)]
pub struct Report {
    /// What it is summed by.
    pub by: Vec<Dimension>,
    /// In the order of their names.
    pub rows: Vec<(Vec<String>, Sums)>,
    /// Entries that could not be read; a newer version may have written them.
    pub unreadable: u64,
}

/// Sums the ledger up. What is in memory is a page of entries and the rows.
pub async fn sum(store: &Store, query: &Query) -> Result<Report, StoreError> {
    let mut rows: BTreeMap<Vec<String>, Sums> = BTreeMap::new();
    let mut unreadable = 0;
    let end = Bound::Excluded(ledger::first_key(query.to));
    let mut start = Bound::Included(ledger::first_key(query.from));
    loop {
        let page =
            store.documents(Kind::Ledger, (start.clone(), end.clone()), Order::Ascending, PAGE).await?;
        for (_, value) in &page {
            let Some(entry) = Entry::read(value) else {
                unreadable += 1;
                continue;
            };
            if query.tenant.as_ref().is_none_or(|tenant| tenant == entry.tenant.as_str()) {
                let name = query.by.iter().map(|dimension| dimension.of(&entry)).collect();
                rows.entry(name).or_default().add(&entry);
            }
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => start = Bound::Excluded(key.clone()),
            _ => break,
        }
    }
    Ok(Report { by: query.by.clone(), rows: rows.into_iter().collect(), unreadable })
}

/// A row as JSON: amounts of money are decimal numbers as texts, so that no reader rounds them.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    name: BTreeMap<&'static str, &'a str>,
    outcomes: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    cost_usd: String,
    realtime_cost_usd: String,
    saved_usd: String,
    retries_usd: String,
    rescues_usd: String,
    waste_usd: String,
    estimated: u64,
    unpriced: u64,
    unknown: u64,
}

/// The columns of a row behind its name, in CSV.
const COLUMNS: [&str; 13] = [
    "outcomes",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_usd",
    "realtime_cost_usd",
    "saved_usd",
    "retries_usd",
    "rescues_usd",
    "waste_usd",
    "estimated",
    "unpriced",
    "unknown",
];

impl Report {
    /// The sum of all rows.
    pub fn total(&self) -> Sums {
        self.rows.iter().fold(Sums::default(), |sum, (_, row)| Sums {
            outcomes: sum.outcomes + row.outcomes,
            usage: sum.usage.plus(row.usage),
            cost: sum.cost + row.cost,
            realtime: sum.realtime + row.realtime,
            retries: sum.retries + row.retries,
            rescues: sum.rescues + row.rescues,
            waste: sum.waste + row.waste,
            estimated: sum.estimated + row.estimated,
            unpriced: sum.unpriced + row.unpriced,
            unknown: sum.unknown + row.unknown,
        })
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let rows: Vec<_> = self.rows.iter().map(|(name, sums)| self.row(name, sums)).collect();
        serde_json::json!({
            "object": "list",
            "by": self.by.iter().map(|dimension| dimension.as_str()).collect::<Vec<_>>(),
            "data": rows,
            "total": self.row(&[], &self.total()),
            "unreadable": self.unreadable,
        })
    }

    fn row<'a>(&self, name: &'a [String], sums: &Sums) -> Row<'a> {
        Row {
            name: self
                .by
                .iter()
                .map(|dimension| dimension.as_str())
                .zip(name.iter().map(String::as_str))
                .collect(),
            outcomes: sums.outcomes,
            input_tokens: sums.usage.input,
            cached_tokens: sums.usage.cached,
            output_tokens: sums.usage.output,
            cost_usd: sums.cost.to_decimal(),
            realtime_cost_usd: sums.realtime.to_decimal(),
            saved_usd: (sums.realtime - sums.cost).to_decimal(),
            retries_usd: sums.retries.to_decimal(),
            rescues_usd: sums.rescues.to_decimal(),
            waste_usd: sums.waste.to_decimal(),
            estimated: sums.estimated,
            unpriced: sums.unpriced,
            unknown: sums.unknown,
        }
    }

    /// As CSV, with a line of names.
    pub fn to_csv(&self) -> String {
        let mut csv = String::new();
        let names = self.by.iter().map(|dimension| dimension.as_str().to_owned());
        csv_line(&mut csv, names.chain(COLUMNS.map(str::to_owned)));
        for (name, sums) in &self.rows {
            let row = self.row(name, sums);
            let values = [
                row.outcomes.to_string(),
                row.input_tokens.to_string(),
                row.cached_tokens.to_string(),
                row.output_tokens.to_string(),
                row.cost_usd,
                row.realtime_cost_usd,
                row.saved_usd,
                row.retries_usd,
                row.rescues_usd,
                row.waste_usd,
                row.estimated.to_string(),
                row.unpriced.to_string(),
                row.unknown.to_string(),
            ];
            csv_line(&mut csv, name.iter().cloned().chain(values));
        }
        csv
    }

    /// As CSV with the columns of `FOCUS`, the FinOps Foundation's form of cost and usage: one line for each day, tenant,
    /// backend, model, mode and offer. Sum by [`FOCUS_BY`] for it.
    pub fn to_focus(&self) -> String {
        let mut csv = String::new();
        csv_line(&mut csv, FOCUS_COLUMNS.map(str::to_owned).into_iter());
        for (name, sums) in &self.rows {
            if let [day, tenant, backend, model, mode, offer] = name.as_slice() {
                csv_line(&mut csv, focus_line(day, tenant, backend, model, (mode, offer), sums).into_iter());
            }
        }
        csv
    }
}

/// What a FOCUS report is summed by.
pub const FOCUS_BY: [Dimension; 6] = [
    Dimension::Day,
    Dimension::Tenant,
    Dimension::Backend,
    Dimension::Model,
    Dimension::Mode,
    Dimension::Offer,
];

const FOCUS_COLUMNS: [&str; 27] = [
    "BilledCost",
    "EffectiveCost",
    "ContractedCost",
    "ListCost",
    "BillingCurrency",
    "BillingAccountId",
    "BillingAccountName",
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "PricingQuantity",
    "PricingUnit",
    "InvoiceIssuerName",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "SkuId",
    "SubAccountId",
    "Tags",
];

fn focus_line(
    day: &str,
    tenant: &str,
    backend: &str,
    model: &str,
    (mode, offer): (&str, &str),
    sums: &Sums,
) -> [String; 27] {
    let cost = sums.cost.to_decimal();
    let tokens = sums.usage.input.saturating_add(sums.usage.output).to_string();
    let start = time(day).unwrap_or(Timestamp(0));
    let next_day = date(start.after(offpeak_core::words::Millis::from_hours(24)), 10);
    let (month, next_month) = months(day);
    let tags = serde_json::json!({ "mode": mode, "offer": offer }).to_string();
    [
        cost.clone(),
        cost.clone(),
        cost,
        sums.realtime.to_decimal(),
        "USD".to_owned(),
        backend.to_owned(),
        backend.to_owned(),
        month,
        next_month,
        format!("{day}T00:00:00Z"),
        format!("{next_day}T00:00:00Z"),
        "Usage".to_owned(),
        String::new(),
        format!("{} outcomes of {model} ({mode})", sums.outcomes),
        "Usage-Based".to_owned(),
        tokens.clone(),
        "Tokens".to_owned(),
        tokens,
        "Tokens".to_owned(),
        backend.to_owned(),
        backend.to_owned(),
        backend.to_owned(),
        "AI and Machine Learning".to_owned(),
        "Large language models".to_owned(),
        format!("{model}/{offer}"),
        tenant.to_owned(),
        tags,
    ]
}

/// The first moments of a day's month and of the next one.
fn months(day: &str) -> (String, String) {
    let number =
        |from: usize, to: usize| day.get(from..to).and_then(|part| part.parse::<u32>().ok()).unwrap_or(1);
    let (year, month) = (number(0, 4), number(5, 7));
    let (next_year, next_month) = if month >= 12 { (year + 1, 1) } else { (year, month + 1) };
    (format!("{year:04}-{month:02}-01T00:00:00Z"), format!("{next_year:04}-{next_month:02}-01T00:00:00Z"))
}

/// One line, with quotes where they are needed. A text that a spreadsheet would take for a formula is quoted by an
/// apostrophe: tenants and models are named by others.
fn csv_line(csv: &mut String, values: impl Iterator<Item = String>) {
    for (index, value) in values.enumerate() {
        if index > 0 {
            csv.push(',');
        }
        let is_number = value.parse::<f64>().is_ok();
        let value =
            if !is_number && value.starts_with(['=', '+', '-', '@']) { format!("'{value}") } else { value };
        if value.contains(['"', ',', '\n', '\r']) {
            csv.push('"');
            csv.push_str(&value.replace('"', "\"\""));
            csv.push('"');
        } else {
            csv.push_str(&value);
        }
    }
    csv.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let sums = Sums {
            outcomes: 2,
            usage: Usage { input: 10, output: 4, ..Usage::default() },
            cost: Money(1_500_000),
            realtime: Money(3_000_000),
            ..Sums::default()
        };
        let name = |tenant: &str| vec!["2026-12-31".to_owned(), tenant.to_owned()];
        Report {
            by: vec![Dimension::Day, Dimension::Tenant],
            rows: vec![(name("a,\"b\""), sums), (name("=1+1"), sums)],
            unreadable: 0,
        }
    }

    #[test]
    fn money_is_a_text_in_json_and_rows_add_up() {
        let json = report().to_json();
        assert_eq!(json["data"][0]["tenant"], "a,\"b\"");
        assert_eq!(json["data"][0]["cost_usd"], "0.0000015");
        assert_eq!(json["total"]["saved_usd"], "0.000003");
        assert_eq!(json["total"]["outcomes"], 4);
    }

    #[test]
    fn csv_is_quoted() {
        let csv = report().to_csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert!(lines[0].starts_with("day,tenant,outcomes,input_tokens"), "{csv}");
        assert!(
            lines[1].starts_with("2026-12-31,\"a,\"\"b\"\"\",2,10,0,4,0.0000015,0.000003,0.0000015"),
            "{csv}"
        );
        assert!(lines[2].starts_with("2026-12-31,'=1+1,2"), "{csv}");
    }

    #[test]
    fn focus_has_its_columns_and_periods() {
        let (_, sums) = report().rows[0].clone();
        let name = ["2026-12-31", "search", "openai", "m", "batch", "batch"].map(str::to_owned).to_vec();
        let focus = Report { by: FOCUS_BY.to_vec(), rows: vec![(name, sums)], unreadable: 0 }.to_focus();
        let lines: Vec<&str> = focus.lines().collect();
        assert_eq!(lines[0].split(',').count(), FOCUS_COLUMNS.len());
        assert!(lines[1].starts_with("0.0000015,0.0000015,0.0000015,0.000003,USD,openai,openai,2026-12-01T00:00:00Z,2027-01-01T00:00:00Z,2026-12-31T00:00:00Z,2027-01-01T00:00:00Z,Usage,"), "{focus}");
    }

    #[test]
    fn times_and_dimensions_are_read() {
        assert_eq!(time("1970-01-02"), Ok(Timestamp(86_400_000)));
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(Timestamp(1000)));
        assert!(time("yesterday").is_err() && time("2026-13-01").is_err());
        assert_eq!(dimensions("tenant, mode,tenant"), Ok(vec![Dimension::Tenant, Dimension::Mode]));
        assert!(dimensions("tenant,colour").unwrap_err().contains("colour"));
    }
}
