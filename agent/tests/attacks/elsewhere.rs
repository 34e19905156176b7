//! Attacks that other tests try: what, and what keeps it out. The table in `docs/sandbox.md` has them too.

/// An attack that is tried by another test of this folder.
pub(crate) struct Elsewhere {
    /// File (in `tests`, or with its folders) and name of the test.
    pub(crate) test: (&'static str, &'static str),
    pub(crate) what: &'static str,
    /// What keeps it out.
    pub(crate) by: &'static str,
}

pub(crate) const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere {
        test: ("destinations", "a_neighbour_slot_cannot_be_reached"),
        what: "reach a neighbour slot's abstract socket beside a list of destinations",
        by: "`net`, `landlock`",
    },
    Elsewhere {
        test: ("destinations", "one_attempt_leaves_nothing_to_the_next_and_lists_can_change"),
        what: "use what an earlier attempt's list allowed",
        by: "`net`: a network for each attempt",
    },
    Elsewhere {
        test: ("destinations", "connections_are_bounded_and_end_with_the_attempt"),
        what: "exhaust the host by connections, or keep one beyond the run",
        by: "the connector: 64 at a time, killed with the attempt",
    },
    Elsewhere {
        test: ("src/sandbox/network_confine_tests", "a_connector_can_look_up_and_connect_and_nothing_else"),
        what: "use the process that looks up names: files, programs, sockets, other processes",
        by: "its own landlock, system call filter, no capability; also tried without them",
    },
    Elsewhere {
        test: ("src/sandbox/network_confine_tests", "a_relay_can_carry_bytes_to_its_port_and_nothing_else"),
        what: "use the process of one connection: another port, a file, another process",
        by: "its own landlock, system call filter, no capability; also tried without them",
    },
    Elsewhere {
        test: ("sandbox", "exactly_four_descriptors_are_open_and_can_be_opened_again"),
        what: "find any descriptor but 0 to 3",
        by: "`closed_descriptors`",
    },
    Elsewhere {
        test: ("sandbox", "the_environment_of_execve_is_the_plans"),
        what: "find any variable but the plan's",
        by: "`environment`",
    },
    Elsewhere {
        test: ("sandbox", "the_result_file_is_taken_if_it_is_a_file"),
        what: "a link, a pipe or a folder in place of the result file",
        by: "the keeper takes regular files by descriptor",
    },
    Elsewhere {
        test: ("sandbox", "files_that_the_script_names_are_kept_and_nothing_else_is"),
        what: "a link or a pipe named as a file to keep",
        by: "the keeper takes regular files beneath the work folder",
    },
    Elsewhere {
        test: ("leavings", "a_folder_that_becomes_a_link_is_not_followed"),
        what: "swap a folder for a link to `/etc` while a file in it is to be kept",
        by: "the keeper takes files when everything is dead, through no link",
    },
    Elsewhere {
        test: ("src/sandbox/swap_tests", "files_to_keep_are_taken_through_no_link_that_appears_meanwhile"),
        what: "the same if something could live on beside the keeper",
        by: "`openat2` beneath the work folder, through no link; also tried without it",
    },
    Elsewhere {
        test: ("src/sandbox/swap_tests", "a_work_folder_is_kept_through_no_link_that_appears_meanwhile"),
        what: "the same when the whole work folder is kept",
        by: "`openat2` beneath the work folder, through no link; also tried without it",
    },
    Elsewhere {
        test: ("leavings", "memory_that_is_no_process_s_own_is_the_runs"),
        what: "hoard memory in memory files, `/dev/shm`, System V segments, pipes",
        by: "`cgroup_memory`; also tried with room for it. Not limited without control groups",
    },
    Elsewhere {
        test: ("leavings", "folders_without_end_go_with_the_attempt"),
        what: "leave folders 4000 deep with the longest names, a sparse file of a TiB, files without end",
        by: "`rlimits`, the limits of the box, which goes as a whole",
    },
    Elsewhere {
        test: ("forged", "another_account_is_not_heard"),
        what: "speak to the launcher from another account, a slot's included",
        by: "the socket's mode, then the peer's uid; also tried from the right account",
    },
    Elsewhere {
        test: ("forged", "forged_words_to_the_launcher_are_refused_and_it_goes_on"),
        what: "forged, malformed, endless requests and connections to the launcher",
        by: "the launcher: bounded messages, its own policy",
    },
    Elsewhere {
        test: ("forged", "forged_plans_to_a_keeper_are_refused_and_nothing_runs"),
        what: "forged and malformed plans to a keeper, of another profile, with wrong descriptors",
        by: "the keeper: it checks what it is asked as if nobody had",
    },
    Elsewhere {
        test: ("sandbox", "leftovers_are_killed_counted_and_not_waited_for"),
        what: "outlive the run: `setsid`, double fork, ignored signals",
        by: "`pid`",
    },
    Elsewhere {
        test: ("sandbox", "a_timeout_is_term_and_then_kill"),
        what: "ignore the end of the time",
        by: "`pid`",
    },
    Elsewhere {
        test: ("sandbox", "output_over_the_limit_is_drained_and_counted"),
        what: "flood the output",
        by: "the keeper drains and counts",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "fork bomb",
        by: "`cgroup_pids`, without control groups `rlimits`",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "memory bomb",
        by: "`cgroup_memory`, without control groups `rlimits` for each process",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "fill the disk, by bytes and by files",
        by: "the limits of the box",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "use up descriptors",
        by: "`rlimits`",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "a storm of signals to all that can be seen",
        by: "`pid`",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "ignore every signal",
        by: "`pid`",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "stop oneself (`SIGSTOP`) so as not to hear the end of the time; loop without end",
        by: "`pid`",
    },
    Elsewhere {
        test: ("bombs", "an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick"),
        what: "flood the result and the errors",
        by: "the keeper drains and counts",
    },
    Elsewhere {
        test: ("sandbox", "nobody_of_the_same_account_reads_memory_of_launcher_keeper_or_init"),
        what: "read memory of launcher, keeper, init from outside, as the same account",
        by: "`PR_SET_DUMPABLE`",
    },
    Elsewhere {
        test: ("sandbox", "the_agent_closes_its_memory_before_it_reads_anything"),
        what: "read memory and variables of the agent, as the same account",
        by: "`PR_SET_DUMPABLE`, before a key is read",
    },
    Elsewhere {
        test: ("bombs", "after_many_mixed_runs_nothing_is_left_behind"),
        what: "leave something behind: processes, descriptors, mounts, files, groups",
        by: "all that is made for an attempt ends with it",
    },
    Elsewhere {
        test: ("sandbox", "a_layer_left_out_shows_in_the_report"),
        what: "a layer that is missing without a word",
        by: "each is checked from inside",
    },
    Elsewhere {
        test: ("sandbox", "what_is_missing_cannot_be_required"),
        what: "run without a layer that the task requires",
        by: "the stage refuses before the script",
    },
];
