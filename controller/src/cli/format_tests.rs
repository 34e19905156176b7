use super::super::tests::{agent, job as job_of, run};
use super::*;
use sally_common::wire::record::{ResultState, RunState};

fn keys(record: &impl Serialize) -> Vec<String> {
    let value = serde_json::to_value(record).expect("a record is JSON");
    value.as_object().expect("an object").keys().cloned().collect()
}

/// The columns of CSV are exactly the fields of the record: a new field must be added here.
#[test]
fn columns_are_the_records_fields() {
    let check = |mut fields: Vec<String>, columns: &[&str]| {
        let mut columns: Vec<String> = columns.iter().map(|c| (*c).to_owned()).collect();
        fields.sort();
        columns.sort();
        assert_eq!(fields, columns);
    };
    let mut run_fields = keys(&run(0, RunState::Failed));
    run_fields.push("job".into());
    check(run_fields, &RUN_COLUMNS);
    check(keys(&job_of(&[])), &JOB_COLUMNS);
    check(keys(&agent("z", "a")), &AGENT_COLUMNS);
}

#[test]
fn csv_keeps_text_numbers_and_json() {
    let mut run = run(0, RunState::Failed);
    run.stdout = "a,\"b\"\nc".into();
    run.exit_code = Some(7);
    run.result = serde_json::from_str(r#"{"n":12345678901234567890123}"#).ok();
    run.result_state = Some(ResultState::Valid);
    let columns = ["agent", "exit_code", "final", "signal", "stdout", "result", "job"];
    let text = csv(&columns, &[run], &[("job", "j")]).expect("csv");
    let expected = "agent,exit_code,final,signal,stdout,result,job\n\
                    local-1,7,true,,\"a,\"\"b\"\"\nc\",\"{\"\"n\"\":12345678901234567890123}\",j\n";
    assert_eq!(text, expected);
}

#[test]
fn yaml_has_the_same_record_as_json() {
    let runs = vec![run(0, RunState::Succeeded)];
    let whole = JobWithRuns { schema: 1, job: job_of(&runs), runs };
    let from_yaml: serde_json::Value =
        serde_yaml_ng::from_str(&yaml(&whole).expect("yaml")).expect("reads back");
    assert_eq!(from_yaml, serde_json::to_value(&whole).expect("json"));
}

#[test]
fn tables_show_words() {
    let jobs = jobs_table(&[job_of(&[run(0, RunState::Failed), run(1, RunState::Succeeded)])], None, false);
    assert!(jobs.starts_with("JOB "), "{jobs}");
    assert!(jobs.contains("1 succeeded, 1 failed"), "{jobs}");
    let agents = agents_table(&[agent("dmz", "web-1")], None, true);
    for part in ["web-1", "online", "8s", "1/4", "strict,net", "role=web"] {
        assert!(agents.contains(part), "{part} in {agents}");
    }
    let mut troubled = agent("dmz", "web-2");
    (troubled.draining, troubled.deferring) = (true, Some("no-room".into()));
    troubled.lost.insert("log-chunks".into(), 3);
    troubled.problem = Some("its journal is an old copy".into());
    let agents = agents_table(&[troubled], None, true);
    for part in ["online (draining, deferring, problem, lost)", "no-room", "log-chunks=3", "an old copy"] {
        assert!(agents.contains(part), "{part} in {agents}");
    }
    let waiting = anstream::adapter::strip_str(&waiting_table(&[run(0, RunState::Pending)])).to_string();
    assert!(waiting.contains("pending  01kajh7m00abcdefghjkmnpqrs-0  1"), "{waiting}");
    let runs = anstream::adapter::strip_str(&runs_table(&[run(0, RunState::Failed)], None)).to_string();
    assert!(runs.contains("failed  local/local-1"), "{runs}");
}
