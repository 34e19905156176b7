//! How fast a slot may use processors and disks, as an operator's profile says. Set by the launcher when the slot's
//! keeper is made, and taken back for a keeper that has no such rates: the group is the slot's and outlives both.
#![forbid(unsafe_code)]

use super::definition::Rates;
use super::layer::Hold;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The time over which a share of the processors is counted, in microseconds: the kernel's usual one.
const PERIOD_US: u64 = 100_000;

/// The shortest share that kernels take, in microseconds.
const SHORTEST_US: u64 = 1_000;

fn quota_us(percent: u64) -> u64 {
    (percent.saturating_mul(PERIOD_US) / 100).max(SHORTEST_US)
}

/// Sets the share of version 2, or none. Returns whether one that is wanted is in force, as read back.
pub(super) fn set_quota_v2(folder: &Path, percent: Option<u64>) -> bool {
    let file = folder.join("cpu.max");
    let wanted = percent.map_or("max".to_owned(), |percent| quota_us(percent).to_string());
    let line = format!("{wanted} {PERIOD_US}");
    let _ = fs::write(&file, &line);
    percent.is_some() && fs::read_to_string(&file).is_ok_and(|text| text.trim() == line)
}

/// The same in version 1.
pub(super) fn set_quota_v1(folder: &Path, percent: Option<u64>) -> bool {
    let (period, quota) = (folder.join("cpu.cfs_period_us"), folder.join("cpu.cfs_quota_us"));
    let wanted = percent.map_or("-1".to_owned(), |percent| quota_us(percent).to_string());
    let _ = fs::write(&period, PERIOD_US.to_string());
    let _ = fs::write(&quota, &wanted);
    let is = |file: &Path, wanted: &str| fs::read_to_string(file).is_ok_and(|text| text.trim() == wanted);
    percent.is_some() && is(&period, &PERIOD_US.to_string()) && is(&quota, &wanted)
}

/// Sets the rates of every disk, or none. `degraded`: of some disks only; `absent`: of none, or there is no disk.
pub(super) fn set_disks(folder: &Path, rates: &Rates, disks: &BTreeSet<String>) -> Hold {
    let file = folder.join("io.max");
    let rate = |rate: Option<u64>| rate.map_or("max".to_owned(), |rate| rate.to_string());
    let line = format!(
        "rbps={} wbps={} riops={} wiops={}",
        rate(rates.read_bytes_per_s),
        rate(rates.write_bytes_per_s),
        rate(rates.reads_per_s),
        rate(rates.writes_per_s)
    );
    let set = disks.iter().filter(|disk| {
        let whole = format!("{disk} {line}");
        fs::write(&file, &whole).is_ok()
            && rates.limits_disks()
            && fs::read_to_string(&file).is_ok_and(|text| text.lines().any(|found| found.trim() == whole))
    });
    match set.count() {
        0 => Hold::Absent,
        all if all == disks.len() => Hold::Enforced,
        _ => Hold::Degraded,
    }
}

/// The disks of this host, by number, as `io.max` names them: whole ones, and none that is in memory.
pub(super) fn disks() -> BTreeSet<String> {
    let folders = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut disks = BTreeSet::new();
    for folder in folders {
        let name = folder.file_name();
        let name = name.to_string_lossy();
        let size = fs::read_to_string(folder.path().join("size")).unwrap_or_default();
        let is_there = size.trim().parse().is_ok_and(|size: u64| size > 0);
        if is_there && !["ram", "zram"].iter().any(|prefix| name.starts_with(prefix)) {
            let number = fs::read_to_string(folder.path().join("dev")).unwrap_or_default();
            disks.insert(number.trim().to_owned());
        }
    }
    disks
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_share_is_written_read_back_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        assert!(set_quota_v2(dir.path(), Some(150)));
        assert_eq!(fs::read_to_string(dir.path().join("cpu.max")).unwrap(), "150000 100000");
        assert!(!set_quota_v2(dir.path(), None));
        assert_eq!(fs::read_to_string(dir.path().join("cpu.max")).unwrap(), "max 100000");
        assert!(set_quota_v1(dir.path(), Some(1)));
        assert_eq!(fs::read_to_string(dir.path().join("cpu.cfs_quota_us")).unwrap(), "1000");
        assert!(!set_quota_v1(dir.path(), None));
        assert_eq!(fs::read_to_string(dir.path().join("cpu.cfs_quota_us")).unwrap(), "-1");
        assert!(!set_quota_v2(&dir.path().join("none"), Some(50)));
    }

    #[test]
    fn disks_are_limited_each_and_what_was_not_taken_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let rates = Rates { write_bytes_per_s: Some(1000), ..Rates::default() };
        let disks = |list: &[&str]| list.iter().map(|disk| (*disk).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(set_disks(dir.path(), &rates, &disks(&["8:0"])), Hold::Enforced);
        let text = fs::read_to_string(dir.path().join("io.max")).unwrap();
        assert_eq!(text, "8:0 rbps=max wbps=1000 riops=max wiops=max");
        assert_eq!(set_disks(dir.path(), &Rates::default(), &disks(&["8:0"])), Hold::Absent);
        assert_eq!(set_disks(dir.path(), &rates, &disks(&[])), Hold::Absent);
        assert_eq!(set_disks(&dir.path().join("none"), &rates, &disks(&["8:0"])), Hold::Absent);
    }
}
