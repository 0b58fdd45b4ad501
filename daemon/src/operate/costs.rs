//! `offpeak costs`: what was spent, by whom and on what.

use clap::{Args as ClapArgs, ValueEnum};
use reqwest::Method;
use serde_json::Value;

use super::client::{self, AdminArgs, OperateError};
use super::table;

/// Says what was spent, from the ledger of a running daemon.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  offpeak costs --from 2026-11-01 --to 2026-12-01\n  \
    offpeak costs --by tenant,purpose --tenant search\n  offpeak costs --format focus > november.csv\n\n\
    `saved` is what the same answers would have cost in real time, less what they cost. `waste` is the part of the cost \
    that bought answers nobody got.")]
pub struct Args {
    /// One row for each combination of these: tenant, backend, endpoint, model, offer, mode, purpose, day, month.
    #[arg(long, default_value = "tenant,model,mode")]
    by: String,
    /// From this time on, in UTC: 2026-11-01 or 2026-11-01T08:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// Up to this time.
    #[arg(long)]
    to: Option<String>,
    /// Of one tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// How it is written. `focus` has the columns of the FinOps Foundation's form of that name, a line a day.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Csv,
    Focus,
}

/// Runs the command; returns what goes to standard output.
pub async fn run(args: &Args) -> Result<String, OperateError> {
    let format = match args.format {
        Format::Table | Format::Json => "json",
        Format::Csv => "csv",
        Format::Focus => "focus",
    };
    let mut query = vec![("by", args.by.as_str()), ("format", format)];
    let given = [("from", &args.from), ("to", &args.to), ("tenant", &args.tenant)];
    query.extend(given.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
    let text = client::call(&args.admin, Method::GET, "/admin/v1/costs", &query, None).await?;
    Ok(match args.format {
        Format::Table => shown(&serde_json::from_str(&text).unwrap_or_default()),
        Format::Json => text + "\n",
        Format::Csv | Format::Focus => text,
    })
}

/// Columns behind the names.
const COLUMNS: [(&str, &str); 7] = [
    ("outcomes", "outcomes"),
    ("input_tokens", "input"),
    ("output_tokens", "output"),
    ("cost_usd", "cost $"),
    ("realtime_cost_usd", "real time $"),
    ("saved_usd", "saved $"),
    ("waste_usd", "waste $"),
];

fn shown(report: &Value) -> String {
    let by: Vec<&str> = report["by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let data = report["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rows: Vec<Vec<String>> =
        vec![by.iter().copied().chain(COLUMNS.map(|(_, title)| title)).map(str::to_owned).collect()];
    for (index, row) in data.iter().chain([&report["total"]]).enumerate() {
        let is_total = index == data.len();
        let names = by.iter().enumerate().map(|(column, name)| match (is_total, column) {
            (true, 0) => "all".to_owned(),
            _ => cell(&row[*name]),
        });
        rows.push(names.chain(COLUMNS.map(|(name, _)| cell(&row[name]))).collect());
    }
    let mut text = table::aligned(&rows, by.len());
    for (name, what) in [
        ("estimated", "outcomes were reckoned: the provider did not say what they took"),
        ("unpriced", "outcomes have no price; name a price file in costs.prices"),
        ("unknown", "calls got no answer; what they cost is only on the provider's bill"),
    ] {
        if let Some(count) = report["total"][name].as_u64().filter(|count| *count > 0) {
            text.extend([&count.to_string(), " ", what, "\n"]);
        }
    }
    text
}

fn cell(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_aligned_and_says_what_is_not_known() {
        let row = json!({"tenant": "search", "outcomes": 3, "input_tokens": 10, "output_tokens": 5, "cost_usd": "0.5",
            "realtime_cost_usd": "1", "saved_usd": "0.5", "waste_usd": "0", "estimated": 1, "unpriced": 0, "unknown": 0});
        let mut total = row.clone();
        total["tenant"] = Value::Null;
        let report = json!({"by": ["tenant"], "data": [row], "total": total});
        let text = shown(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "tenant  outcomes  input  output  cost $  real time $  saved $  waste $");
        assert_eq!(lines[1], "search         3     10       5     0.5            1      0.5        0");
        assert!(lines[2].starts_with("all            3"), "{text}");
        assert!(lines[3].starts_with("1 outcomes were reckoned"), "{text}");
    }
}
