//! What an agent must not be able to do at the broker. The table of `docs/permissions.md` is made from this list.

/// One thing that is tried.
#[derive(Debug, Clone, Copy)]
pub enum Try {
    /// Publish to a subject.
    Pub(&'static str),
    /// Subscribe to a pattern.
    Sub(&'static str),
    /// Subscribe as a member of a queue group.
    Queue(&'static str),
}

/// One thing that is forbidden, tried by the test of its name.
pub struct Row {
    pub test: &'static str,
    /// For people.
    pub what: &'static str,
    /// Each must be refused.
    pub tries: &'static [Try],
}

/// One thing that the broker does not refuse and that has no effect, tried by the test of its name.
pub struct Trick {
    pub test: &'static str,
    /// For people.
    pub what: &'static str,
    /// Why it does nothing.
    pub because: &'static str,
}

use Try::{Pub, Queue, Sub};

/// The agent that tries is `evil`, its neighbour `local-1`, both of zone `local`.
pub const ROWS: &[Row] = &[
    Row {
        test: "another_agents_tasks",
        what: "read the tasks of another agent, of a zone, of all, or its own in the stream",
        tries: &[
            Sub("sally.task.local.local-1"),
            Sub("sally.task.local.*"),
            Sub("sally.task.>"),
            Sub("sally.*.local.local-1"),
            Sub("sally.task.local.evil"),
        ],
    },
    Row {
        test: "another_agents_commands",
        what: "read the commands to another agent, alone or among others",
        tries: &[
            Sub("sally.live.local.local-1"),
            Sub("sally.live.local.*"),
            Sub("sally.live.local.>"),
            Sub("sally.live.*.evil"),
            Sub("sally.live.>"),
        ],
    },
    Row {
        test: "another_agents_commands_in_a_queue_group",
        what: "take the commands of another agent away, as a member of a queue group",
        tries: &[Queue("sally.live.local.local-1"), Queue("sally.live.>"), Queue("sally.task.>")],
    },
    Row {
        test: "another_agents_results",
        what: "read results, its own too",
        tries: &[
            Sub("sally.result.local.local-1"),
            Sub("sally.result.local.*"),
            Sub("sally.result.>"),
            Sub("sally.result.local.evil"),
        ],
    },
    Row {
        test: "another_agents_output",
        what: "read output",
        tries: &[Sub("sally.log.local.local-1"), Sub("sally.log.local.*"), Sub("sally.log.>")],
    },
    Row {
        test: "another_agents_news_and_questions",
        what: "read news of runs, or questions to the controller",
        tries: &[
            Sub("sally.state.local.local-1"),
            Sub("sally.state.>"),
            Sub("sally.ask.local.local-1"),
            Sub("sally.ask.>"),
        ],
    },
    Row {
        test: "heartbeats",
        what: "see heartbeats, and with them which agents there are",
        tries: &[
            Sub("sally.heartbeat.local.local-1"),
            Sub("sally.heartbeat.local.*"),
            Sub("sally.heartbeat.>"),
        ],
    },
    Row {
        test: "everything",
        what: "listen to everything",
        tries: &[Sub(">"), Sub("*"), Sub("*.>"), Sub("sally.>"), Sub("sally.*.*.*"), Queue(">")],
    },
    Row {
        test: "publishing_as_another_agent",
        what: "publish as another agent",
        tries: &[
            Pub("sally.result.local.local-1"),
            Pub("sally.state.local.local-1"),
            Pub("sally.log.local.local-1"),
            Pub("sally.heartbeat.local.local-1"),
            Pub("sally.ask.local.local-1"),
        ],
    },
    Row {
        test: "publishing_in_another_zone",
        what: "publish as an agent of another zone, or where nobody's subject is",
        tries: &[
            Pub("sally.result.shop.evil"),
            Pub("sally.heartbeat.shop.evil"),
            Pub("sally.result.local"),
            Pub("sally.result.local.evil.more"),
            Pub("sally.result"),
            Pub("other"),
        ],
    },
    Row {
        test: "commands",
        what: "give tasks or commands to another agent, or to itself",
        tries: &[
            Pub("sally.task.local.local-1"),
            Pub("sally.live.local.local-1"),
            Pub("sally.task.local.evil"),
            Pub("sally.live.local.evil"),
        ],
    },
    Row {
        test: "the_controllers_api",
        what: "ask the controller as a caller, or hear callers ask",
        tries: &[
            Pub("sally.api.submit"),
            Pub("sally.api.hello"),
            Pub("sally.api.cancel"),
            Sub("sally.api.>"),
            Queue("sally.api.>"),
        ],
    },
    Row {
        test: "making_streams",
        what: "make or change a stream",
        tries: &[
            Pub("$JS.API.STREAM.CREATE.EVIL"),
            Pub("$JS.API.STREAM.UPDATE.TASKS"),
            Pub("$JS.API.STREAM.RESTORE.EVIL"),
            Pub("$JS.API.STREAM.TEMPLATE.CREATE.EVIL"),
        ],
    },
    Row {
        test: "removing_streams",
        what: "remove a stream, empty it, or remove a message",
        tries: &[
            Pub("$JS.API.STREAM.DELETE.TASKS"),
            Pub("$JS.API.STREAM.PURGE.TASKS"),
            Pub("$JS.API.STREAM.MSG.DELETE.TASKS"),
            Pub("$JS.API.STREAM.LEADER.STEPDOWN.TASKS"),
        ],
    },
    Row {
        test: "looking_at_streams",
        what: "look at streams, or read messages from one",
        tries: &[
            Pub("$JS.API.INFO"),
            Pub("$JS.API.STREAM.NAMES"),
            Pub("$JS.API.STREAM.LIST"),
            Pub("$JS.API.STREAM.INFO.TASKS"),
            Pub("$JS.API.STREAM.SNAPSHOT.TASKS"),
            Pub("$JS.API.STREAM.MSG.GET.TASKS"),
            Pub("$JS.API.DIRECT.GET.TASKS"),
            Pub("$JS.API.DIRECT.GET.TASKS.sally.task.local.local-1"),
        ],
    },
    Row {
        test: "consumers",
        what: "make, remove or look at consumers, or have messages of one",
        tries: &[
            Pub("$JS.API.CONSUMER.CREATE.TASKS"),
            Pub("$JS.API.CONSUMER.CREATE.TASKS.evil.sally.task.local.local-1"),
            Pub("$JS.API.CONSUMER.DURABLE.CREATE.TASKS.evil"),
            Pub("$JS.API.CONSUMER.DELETE.TASKS.evil"),
            Pub("$JS.API.CONSUMER.INFO.TASKS.evil"),
            Pub("$JS.API.CONSUMER.NAMES.TASKS"),
            Pub("$JS.API.CONSUMER.LIST.TASKS"),
            Pub("$JS.API.CONSUMER.PAUSE.TASKS.evil"),
            Pub("$JS.API.CONSUMER.MSG.NEXT.TASKS.evil"),
        ],
    },
    Row {
        test: "acknowledging",
        what: "acknowledge for somebody, or answer flow control",
        tries: &[
            Pub("$JS.ACK.TASKS.evil.1.1.1.1.1"),
            Pub("$JS.ACK._.x.TASKS.evil.1.1.1.1.1"),
            Pub("$JS.FC.TASKS.evil"),
            Sub("$JS.ACK.>"),
            Sub("$JS.EVENT.>"),
        ],
    },
    Row {
        test: "inboxes_of_others",
        what: "write into the inbox of the controller, of a caller, of anybody; or read one",
        tries: &[
            Pub("_INBOX_ctl.x.y"),
            Pub("_INBOX_cli.root.x"),
            Pub("_INBOX_acc.x"),
            Pub("_INBOX.x.y"),
            Sub("_INBOX_ctl.>"),
            Sub("_INBOX_cli.>"),
            Sub("_INBOX_acc.>"),
            Sub("_INBOX.>"),
            Sub("_INBOX.own.x"),
        ],
    },
    Row {
        test: "the_broker_itself",
        what: "change accounts, or ask the broker about itself and others' connections",
        tries: &[
            Pub("$SYS.REQ.CLAIMS.UPDATE"),
            Pub("$SYS.REQ.CLAIMS.DELETE"),
            Pub("$SYS.REQ.CLAIMS.LIST"),
            Pub("$SYS.REQ.SERVER.PING"),
            Pub("$SYS.REQ.SERVER.PING.CONNZ"),
            Pub("$SYS.REQ.ACCOUNT.PING.CONNZ"),
            Sub("$SYS.>"),
            Sub("$SYS.ACCOUNT.>"),
        ],
    },
    Row {
        test: "enrolments",
        what: "use or watch the enrolment of another host",
        tries: &[
            Pub("sally.enroll.local.x"),
            Pub("sally.enrolled.local.x"),
            Sub("sally.enroll.>"),
            Sub("sally.enrolled.local.*"),
            Sub("sally.enrolled.>"),
        ],
    },
];

/// What the broker lets an agent say and does nothing with.
pub const TRICKS: &[Trick] = &[
    Trick {
        test: "a_reply_subject",
        what: "name another's task, command, result or inbox as the reply of its own message, so that the server writes there",
        because: "no stream takes what an agent writes, the controller ignores replies, and the answer would stay in the zone's account",
    },
    Trick {
        test: "a_deliver_subject",
        what: "have a consumer deliver to another's subject",
        because: "the request that would make it is refused; nothing is delivered",
    },
    Trick {
        test: "a_schedule",
        what: "have the server publish later, or again and again, by the headers of message schedules",
        because: "no stream takes what an agent writes",
    },
    Trick {
        test: "a_rollup",
        what: "have the server drop messages of a stream by the header of a rollup, a purge mark or a time to live",
        because: "no stream takes what an agent writes, and the stream of tasks allows none of them",
    },
    Trick {
        test: "a_stolen_message_id",
        what: "use the message id of a dispatch first, so that the dispatch is dropped as a duplicate",
        because: "what an agent writes reaches no stream that remembers ids",
    },
    Trick {
        test: "a_trace",
        what: "have the server write traces of its message to another's subject",
        because: "the trace stays in the zone's account and under the agent's permissions",
    },
    Trick {
        test: "a_request_of_its_own",
        what: "ask the controller with an inbox of its own",
        because: "it may read no inbox, and the controller answers on the agent's one subject only",
    },
    Trick {
        test: "many_subscriptions",
        what: "burden the broker with subscriptions",
        because: "the credential allows eight",
    },
];
