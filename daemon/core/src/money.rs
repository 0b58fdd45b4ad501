//! Money: whole pico-dollars (10^-12 US dollars), so that the price of one token is exact and sums never drift.
//!
//! $1 for a million tokens is 1,000,000 of these a token; the cheapest price in use (half a cent for a million tokens) is
//! 5,000. An `i128` holds more of them than there is money, so that sums over a ledger cannot overflow in practice; where
//! arithmetic meets numbers from outside it is checked all the same.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Pico-dollars in a dollar.
const DOLLAR: i128 = 1_000_000_000_000;

/// Digits of a dollar behind the point.
const PLACES: i64 = 12;

/// An amount of money, or a price. It stands in stored entries as a plain number, and is shown to people in dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(pub i128);

/// A text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an amount: write a number of dollars such as 12.50 or 1.5e-07")]
pub struct NotMoney(String);

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many whole dollars.
    #[must_use]
    pub const fn dollars(dollars: u32) -> Self {
        Self(dollars as i128 * DOLLAR)
    }

    /// The amount so many times; none if there is no such number.
    #[must_use]
    pub const fn times(self, count: u64) -> Option<Self> {
        match self.0.checked_mul(count as i128) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }

    /// A share in thousandths, rounded to the nearest pico-dollar, halves away from zero.
    #[must_use]
    pub const fn permille(self, share: u32) -> Self {
        let product = self.0.saturating_mul(share as i128);
        let half = if product < 0 { -500 } else { 500 };
        Self(product.saturating_add(half) / 1000)
    }

    /// The sum; stays at the largest amount instead of overflowing.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// As a number that a plugin takes; an amount beyond nine million dollars stays at that bound.
    #[must_use]
    pub const fn to_i64(self) -> i64 {
        if self.0 > i64::MAX as i128 {
            i64::MAX
        } else if self.0 < i64::MIN as i128 {
            i64::MIN
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "it lies within the bounds")]
            {
                self.0 as i64
            }
        }
    }

    /// Dollars as a decimal number with all its digits, such as "0.000105"; for machines.
    #[must_use]
    pub fn to_decimal(self) -> String {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, part) = (self.0.unsigned_abs() / DOLLAR as u128, self.0.unsigned_abs() % DOLLAR as u128);
        if part == 0 {
            return format!("{sign}{whole}");
        }
        let digits = format!("{part:012}");
        format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl FromStr for Money {
    type Err = NotMoney;

    /// Reads dollars from a decimal number, with an exponent or without, exactly: the text's own digits count, not the
    /// binary fraction nearest to them. What lies below a pico-dollar is rounded to the nearest one, which also mends
    /// numbers that went through binary fractions before (2.6999999999999998e-08).
    fn from_str(text: &str) -> Result<Self, NotMoney> {
        parse(text.trim()).map(Self).ok_or_else(|| NotMoney(text.chars().take(40).collect()))
    }
}

fn parse(text: &str) -> Option<i128> {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let (sign, number) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let has_digits = !(whole.is_empty() && part.is_empty());
    if !has_digits || !whole.bytes().chain(part.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // The digits make a whole number of units of 10^-shift pico-dollars.
    let shift = i64::try_from(part.len()).ok()?.checked_sub(exponent)?.checked_sub(PLACES)?;
    let mut digits = 0_i128;
    for digit in whole.bytes().chain(part.bytes()) {
        digits = digits.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let amount = if shift <= 0 {
        let factor = 10_i128.checked_pow(u32::try_from(-shift).ok()?);
        if digits == 0 { 0 } else { digits.checked_mul(factor?)? }
    } else {
        match 10_i128.checked_pow(u32::try_from(shift).ok()?) {
            Some(divisor) => digits.checked_add(divisor / 2)? / divisor,
            None => 0,
        }
    };
    Some(sign * amount)
}

impl fmt::Display for Money {
    /// Dollars, with at least two places and no more than needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimal = Self(self.0.saturating_abs()).to_decimal();
        let sign = if self.0 < 0 { "-" } else { "" };
        let shown = match decimal.split_once('.') {
            None => format!("{sign}${decimal}.00"),
            Some((whole, part)) => format!("{sign}${whole}.{part:0<2}"),
        };
        f.pad(&shown)
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.plus(other)
    }
}

impl AddAssign for Money {
    fn add_assign(&mut self, other: Self) {
        *self = self.plus(other);
    }
}

impl Sub for Money {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::plus)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prices_are_read_digit_by_digit() {
        for (text, pico) in [
            ("1.5e-07", 150_000),
            ("0.00000015", 150_000),
            ("5e-09", 5_000),
            ("3.75E-8", 37_500),
            ("1.0e-05", 10_000_000),
            ("1e-12", 1),
            ("2.6999999999999998e-08", 27_000),
            ("4e-13", 0),
            ("5e-13", 1),
            ("1e-400", 0),
            ("0", 0),
            ("0.0e99", 0),
            ("12.50", 12_500_000_000_000),
            ("-.5", -500_000_000_000),
            ("2.", 2_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Money(pico)), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in
            ["", ".", "-", "1,5", "$1", "1e", "1e9999999999999999999", "1e40", "NaN", "0x1", "1 2", "--1"]
        {
            assert!(text.parse::<Money>().is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_are_shown_in_dollars() {
        for (pico, shown, decimal) in [
            (0, "$0.00", "0"),
            (1, "$0.000000000001", "0.000000000001"),
            (105_000_000, "$0.000105", "0.000105"),
            (1_500_000_000_000, "$1.50", "1.5"),
            (-2_000_000_000_000, "-$2.00", "-2"),
        ] {
            assert_eq!(
                (Money(pico).to_string().as_str(), Money(pico).to_decimal().as_str()),
                (shown, decimal)
            );
        }
    }

    #[test]
    fn shares_are_rounded_once() {
        assert_eq!(Money(5_000).permille(700), Money(3_500));
        assert_eq!(Money(1).permille(500), Money(1));
        assert_eq!(Money(1).permille(499), Money(0));
        assert_eq!(Money(-3).permille(500), Money(-2));
        assert_eq!(Money(i128::MAX).times(2), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(pico in any::<i64>()) {
            prop_assert_eq!(Money(pico.into()).to_decimal().parse(), Ok(Money(pico.into())));
        }

        #[test]
        fn the_exponent_only_moves_the_point(digits in 0_u32..1_000_000, exponent in -20_i32..6) {
            let shifted = format!("{digits}e{exponent}").parse::<Money>();
            let plain = if exponent >= 0 {
                format!("{digits}{}", "0".repeat(exponent.unsigned_abs() as usize))
            } else {
                let padded = format!("{digits:021}");
                let (whole, part) = padded.split_at(padded.len() - exponent.unsigned_abs() as usize);
                format!("{whole}.{part}")
            };
            prop_assert_eq!(shifted, plain.parse::<Money>());
        }

        #[test]
        fn garbage_never_panics(text in "\\PC{0,40}") {
            drop(text.parse::<Money>());
        }
    }
}
