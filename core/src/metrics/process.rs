//! Memory, files and time of this process, as Linux tells them; on other systems nothing is said.

use super::Text;

/// Clock ticks of /proc per second; Linux has had this figure in what it shows to programs since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of a kilobyte as /proc has them.
const KIB: f64 = 1_024.0;

/// Writes what there is.
pub(super) fn write(text: &mut Text) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let status = read("status");
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse::<f64>()
            .ok()
    };
    if let Some(resident) = of("VmRSS") {
        let help = "Resident memory, in bytes.";
        text.gauge("process_resident_memory_bytes", help, resident * KIB);
    }
    if let Some(threads) = of("Threads") {
        text.gauge("process_threads", "Threads.", threads);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Open files and connections.", files.count());
    }
    let limits = read("limits");
    let most = limits.lines().find_map(|line| {
        let figures = line.strip_prefix("Max open files")?;
        figures.split_whitespace().next()?.parse::<u64>().ok()
    });
    if let Some(most) = most {
        text.gauge("process_max_fds", "Files and connections that may be open.", most);
    }
    // The name of the program stands in parentheses and may hold anything; the figures follow it.
    let stat = read("stat");
    let figures: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|figure| figure.parse().ok())
        .collect();
    // The state is a letter and drops out, so utime and stime (fields 14 and 15) are the eleventh and twelfth left.
    if let (Some(user), Some(system)) = (figures.get(10), figures.get(11)) {
        text.family(
            "process_cpu_seconds_total",
            "counter",
            "Processor time used, in seconds.",
        );
        text.line(
            "process_cpu_seconds_total",
            "",
            (user + system) / TICKS_PER_SECOND,
        );
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_memory_files_and_time() {
        let mut text = Text::default();
        write(&mut text);
        for name in [
            "process_resident_memory_bytes",
            "process_threads",
            "process_open_fds",
            "process_max_fds",
            "process_cpu_seconds_total",
        ] {
            let line = text
                .0
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name} ")));
            let value: f64 = line.and_then(|value| value.parse().ok()).unwrap_or(-1.0);
            assert!(value >= 0.0, "{name} in {}", text.0);
        }
    }
}
