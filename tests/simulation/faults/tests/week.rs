//! A week of traffic, in virtual time: the space of what is over is used again.

mod common;

use fault_simulation::{Day, week};

/// So many come where nobody says otherwise; results are kept for six hours.
const CLIENTS: u64 = 600;

/// What the index may keep of a request for good: its entry in the ledger, and its share of its job.
const KEPT_OF_EACH: u64 = 700;

#[test]
fn a_week_of_traffic_keeps_the_data_folder_bounded() {
    let clients = std::env::var("OFFPEAK_WEEK").ok().map_or(CLIENTS, |text| text.parse().unwrap());
    let week = week(&common::plugins().unwrap(), clients).unwrap();
    println!("day   asked  written      log    index lanes");
    for (number, day) in (1..).zip(&week.days) {
        let Day { asked, written, log, index, lanes } = day;
        println!("{number:>3} {asked:>7} {written:>8} {log:>8} {index:>8} {lanes:>5}");
    }
    assert_eq!(week.violations, Vec::<String>::new());
    // The first two days are those in which it fills; deadlines are up to a day away.
    let (first, rest) = week.days.split_at(2);
    let most = |days: &[Day], of: fn(&Day) -> u64| days.iter().map(of).max().unwrap_or(0);
    let written: u64 = week.days.iter().map(|day| day.written).sum();
    let log = most(rest, |day| day.log);
    assert!(log <= most(first, |day| day.log) * 3 / 2, "the log does not grow");
    assert!(written > 3 * log, "what was written in a week would not fit otherwise");
    let asked: u64 = rest.iter().map(|day| day.asked).sum();
    let grown = most(rest, |day| day.index).saturating_sub(most(first, |day| day.index));
    assert!(grown <= asked * KEPT_OF_EACH, "the index has grown by {grown} for {asked} requests");
}
