//! Durations as people write them: `10s`, `500ms`, `1h30m`, `2d`.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
/// The longest duration, a bound against mistakes: ten years.
const LONGEST_MS: u64 = 3_650 * 86_400_000;

/// Reads a duration: numbers with units, largest unit first.
///
/// # Errors
/// With what was written, what is wrong with it, and how to write one.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = |problem: &str| {
        let shown = crate::name::show(text);
        Err(format!("\"{shown}\" is not a duration: {problem}; write 30s, 10m, 1h30m, 2d or 500ms"))
    };
    let (mut rest, mut total, mut smallest) = (text, 0u64, u64::MAX);
    if rest.is_empty() {
        return bad("it is empty");
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let Ok(number) = rest[..digits].parse::<u64>() else {
            return bad("a number is missing or too large");
        };
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let Some((_, unit)) = UNITS.iter().find(|(name, _)| *name == &rest[..letters]) else {
            return bad("a unit is missing or not one of ms, s, m, h, d");
        };
        if *unit >= smallest {
            return bad("its units are not in order");
        }
        smallest = *unit;
        rest = &rest[letters..];
        total = match number.checked_mul(*unit).and_then(|n| total.checked_add(n)) {
            Some(sum) if sum <= LONGEST_MS => sum,
            _ => return bad("it is longer than ten years"),
        };
    }
    Ok(Duration::from_millis(total))
}

/// The same for what must last some time.
///
/// # Errors
/// As [`parse`], and for no time at all.
pub fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => {
            Err(format!("\"{}\" is no time at all: write at least 1ms", crate::name::show(text)))
        }
        some => Ok(some),
    }
}

/// A duration as the wire has it, in milliseconds.
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a duration for people: two units at most.
pub fn show(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", ms / 60_000, ms % 60_000 / 1_000),
        3_600_000..86_400_000 => format!("{}h{:02}m", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{}d{:02}h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, ms) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1m5s10ms", 65_010),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_bad_one_is_named() {
        for bad in [
            "",
            "10",
            "s",
            "10x",
            "10S",
            "1.5h",
            "-1s",
            "30m1h",
            "1s1s",
            " 1s",
            "99999999999999999999s",
            "4000d",
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(&format!("\"{bad}\" is not a duration")), "{error}");
        }
        assert!(parse_positive("0s").is_err());
    }

    #[test]
    fn people_see_two_units() {
        for (ms, text) in
            [(7, "7ms"), (1_250, "1.2s"), (61_000, "1m01s"), (3_660_000, "1h01m"), (90_000_000, "1d01h")]
        {
            assert_eq!(show(ms), text);
        }
    }
}
