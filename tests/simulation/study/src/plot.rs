//! The study as a picture: for each scenario a panel, for each policy a point, cost to the right and missed deadlines up.

use crate::Row;
use crate::policy::Policy;
use crate::scenario::Scenario;

/// Writing to a text cannot fail.
macro_rules! put {
    ($out:expr, $($rest:tt)*) => {
        $out.push_str(&(format!($($rest)*) + "\n"))
    };
}

const PANEL: (f64, f64) = (225.0, 170.0);
const GAP: (f64, f64) = (20.0, 48.0);
const LEFT: f64 = 70.0;
const TOP: f64 = 64.0;
const COLUMNS: usize = 4;

/// Costs at the edges of a panel.
const COSTS: (f64, f64) = (0.4, 1.2);

/// Powers of ten of the missed share at the edges of a panel; "none" is drawn at the lower one.
const MISSED: (f64, f64) = (-5.0, 0.0);

const fn colour(policy: Policy) -> &'static str {
    match policy {
        Policy::Offpeak => "#1a7f37",
        Policy::NeverEscalate => "#cf222e",
        Policy::FixedLead => "#bf8700",
        Policy::Realtime => "#57606a",
    }
}

/// The picture.
pub(crate) fn svg(rows: &[Row]) -> String {
    let lines = Scenario::ALL.len().div_ceil(COLUMNS);
    let width = LEFT + at(COLUMNS, PANEL.0 + GAP.0);
    let height = TOP + at(lines, PANEL.1 + GAP.1) + 16.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    put!(
        out,
        "<text x=\"{LEFT}\" y=\"20\" font-size=\"14\">Missed deadlines (up) and cost relative to all real time (right): \
         lower and further left is better</text>"
    );
    for (n, policy) in Policy::ALL.into_iter().enumerate() {
        let x = LEFT + at(n, 150.0);
        put!(out, "<circle cx=\"{x}\" cy=\"38\" r=\"5\" fill=\"{}\"/>", colour(policy));
        put!(out, "<text x=\"{}\" y=\"42\">{}</text>", x + 10.0, policy.name());
    }
    for (n, scenario) in Scenario::ALL.into_iter().enumerate() {
        let x = LEFT + at(n % COLUMNS, PANEL.0 + GAP.0);
        let y = TOP + at(n / COLUMNS, PANEL.1 + GAP.1) + 14.0;
        panel(
            &mut out,
            rows.iter().filter(|row| row.scenario == scenario),
            scenario,
            (x, y),
            n % COLUMNS == 0,
        );
    }
    out.push_str("</svg>\n");
    out
}

fn panel<'a>(
    out: &mut String,
    rows: impl Iterator<Item = &'a Row>,
    scenario: Scenario,
    (x, y): (f64, f64),
    is_first: bool,
) {
    let (w, h) = PANEL;
    put!(out, "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}</text>", y - 4.0, scenario.name());
    put!(out, "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"none\" stroke=\"#8c959f\"/>");
    for cost in [0.5, 0.75, 1.0] {
        let at = x + across(cost) * w;
        put!(
            out,
            "<line x1=\"{at}\" x2=\"{at}\" y1=\"{y}\" y2=\"{}\" stroke=\"#d0d7de\"/><text x=\"{at}\" y=\"{}\" \
             text-anchor=\"middle\">{:.0}%</text>",
            y + h,
            y + h + 14.0,
            cost * 100.0
        );
    }
    for (missed, label) in [(0.0, "none"), (0.0001, "0.01%"), (0.001, "0.1%"), (0.01, "1%"), (0.1, "10%")] {
        let at = y + h - up(missed) * h;
        put!(out, "<line x1=\"{x}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"#d0d7de\"/>", x + w);
        if is_first {
            put!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", x - 6.0, at + 4.0);
        }
    }
    for row in rows {
        let (cx, cy) = (x + across(row.cost()) * w, y + h - up(row.missed()) * h);
        put!(
            out,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5\" fill=\"{}\"><title>{}: {:.4}% missed, cost {:.2}%</title>\
             </circle>",
            colour(row.policy),
            row.policy.name(),
            100.0 * row.missed(),
            100.0 * row.cost()
        );
    }
}

fn across(cost: f64) -> f64 {
    ((cost - COSTS.0) / (COSTS.1 - COSTS.0)).clamp(0.0, 1.0)
}

fn up(missed: f64) -> f64 {
    ((missed.max(1e-9).log10() - MISSED.0) / (MISSED.1 - MISSED.0)).clamp(0.0, 1.0)
}

#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn at(n: usize, step: f64) -> f64 {
    n as f64 * step
}
