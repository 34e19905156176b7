//! Destinations: what is one, what a connection leads to, and what no list can lead to.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn list(texts: &[&str]) -> Vec<Destination> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn leads(texts: &[&str], at: &str) -> Option<Target> {
    target(&list(texts), at.parse().unwrap())
}

fn address(text: &str) -> Option<Target> {
    Some(Target::Address(text.parse().unwrap()))
}

#[test]
fn a_destination_is_written_as_it_is_read() {
    for text in [
        "db.example:5432",
        "10.2.0.7:5432",
        "10.2.0.0/24:8000-8010",
        "[2001:db8::7]:443",
        "[2001:db8::/32]:443",
        "*:443",
        "localhost:1-9",
        "0.0.0.0/0:1",
    ] {
        let read: Destination = text.parse().unwrap();
        assert_eq!(read.to_string(), text);
        let json = serde_json::to_string(&read).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Destination>(&json).unwrap(), read);
    }
    assert_eq!("DB.Example.:80".parse::<Destination>().unwrap().to_string(), "db.example:80");
    assert_eq!("a:7-7".parse::<Destination>().unwrap().to_string(), "a:7");
}

#[test]
fn what_is_none_is_refused_with_the_reason() {
    for (text, why) in [
        ("", "no port"),
        ("db", "no port"),
        ("db:", "no port from 1"),
        ("db:0", "no port from 1"),
        ("db:+5", "no port from 1"),
        ("db:65536", "no port from 1"),
        ("db:9-8", "ends before"),
        ("db:1-257", "more than 256 ports"),
        ("db:53/udp", "only TCP"),
        ("http://db:80", "URL"),
        ("a b:80", "space"),
        ("a\n:80", "space"),
        (":80", "no host name"),
        ("-a:80", "no host name"),
        ("a..b:80", "no host name"),
        ("bücher:80", "no host name"),
        ("2001:db8::7:443", "brackets"),
        ("[db]:443", "brackets"),
        ("[10.0.0.1]:443", "brackets"),
        ("[::1]443", "after ]"),
        ("10.2.0.7/24:80", "is 10.2.0.0/24"),
        ("10.2.0.0/33:80", "bits"),
        ("db/24:80", "no IP address"),
        ("[::ffff:10.0.0.1]:80", "write that"),
        ("[fe80::1]:80", "interface"),
        ("0.0.0.0:80", "no connection"),
        ("224.0.0.1:80", "no connection"),
        ("10.1:80", "in full"),
        ("0x7f000001:80", "in full"),
        ("2130706433:80", "in full"),
        ("127.0.0.0x1:80", "in full"),
        ("1.2.3.256:80", "in full"),
    ] {
        let message = text.parse::<Destination>().unwrap_err();
        assert!(message.contains(why) && message.contains("HOST:PORT"), "{text:?}: {message}");
    }
}

#[test]
fn a_connection_leads_to_what_is_listed_and_nowhere_else() {
    let both = ["10.2.0.7:5432", "10.3.0.0/24:80-81", "[2001:db8::7]:443"];
    assert_eq!(leads(&both, "10.2.0.7:5432"), address("10.2.0.7:5432"));
    assert_eq!(leads(&both, "[::ffff:10.2.0.7]:5432"), address("10.2.0.7:5432"));
    assert_eq!(leads(&both, "10.3.0.255:81"), address("10.3.0.255:81"));
    assert_eq!(leads(&both, "[2001:db8::7]:443"), address("[2001:db8::7]:443"));
    for other in [
        "10.2.0.7:5433",
        "10.2.0.7:80",
        "10.2.0.8:5432",
        "10.3.1.0:80",
        "[2001:db8::8]:443",
        "127.0.0.1:5432",
    ] {
        assert_eq!(leads(&both, other), None, "{other}");
    }
}

#[test]
fn names_have_addresses_of_their_own() {
    let listed = list(&["b.example:80", "a.example:443", "b.example:81"]);
    let at = |last| Ipv4Addr::new(127, 83, 0, last);
    assert_eq!(names(&listed), [("b.example", at(1)), ("a.example", at(2))]);
    assert!(hosts(&listed).ends_with("127.83.0.1 b.example\n127.83.0.2 a.example\n"));
    let lead = |text: &str| target(&listed, text.parse().unwrap());
    assert_eq!(lead("127.83.0.1:81"), Some(Target::Name("b.example".into(), 81)));
    assert_eq!(lead("127.83.0.2:443"), Some(Target::Name("a.example".into(), 443)));
    assert_eq!(lead("127.83.0.2:80"), None);
    assert_eq!(lead("127.83.0.3:80"), None);
}

#[test]
fn special_addresses_are_reached_only_if_they_are_named() {
    let special = [
        "127.0.0.1:80",
        "127.9.9.9:80",
        "169.254.169.254:80",
        "100.100.100.200:80",
        "224.0.0.5:80",
        "255.255.255.255:80",
        "0.0.0.0:80",
        "[::1]:80",
        "[fe80::1]:80",
        "[fd00:ec2::254]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:169.254.169.254]:80",
        "[::7f00:1]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[ff02::1]:80",
    ];
    for at in special {
        assert_eq!(
            leads(&["*:80", "0.0.0.0/0:80", "[::/0]:80", "126.0.0.0/7:80", "100.64.0.0/10:80"], at),
            None,
            "{at}"
        );
    }
    assert_eq!(leads(&["127.0.0.1:80"], "127.0.0.1:80"), address("127.0.0.1:80"));
    assert_eq!(leads(&["169.254.169.254:80"], "169.254.169.254:80"), address("169.254.169.254:80"));
    assert_eq!(leads(&["127.0.0.0/8:80"], "127.9.9.9:80"), address("127.9.9.9:80"));
    assert_eq!(leads(&["localhost:80"], "[::1]:80"), address("[::1]:80"));
    assert_eq!(leads(&["localhost:80"], "127.0.0.2:80"), None);
    assert_eq!(leads(&["*:80"], "8.8.8.8:80"), address("8.8.8.8:80"));
    assert_eq!(leads(&["*:80"], "[2001:db8::1]:80"), address("[2001:db8::1]:80"));
}

#[test]
fn sockets_listen_at_single_addresses_unless_a_network_needs_all() {
    let at = |texts: &[&str]| {
        let sockets = listeners(&list(texts));
        sockets.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(at(&["10.0.0.1:80", "db:81"]), ["10.0.0.1:80", "127.83.0.1:81"]);
    assert_eq!(at(&["10.0.0.1:80-82", "10.9.0.0/16:81"]), ["10.0.0.1:80", "10.0.0.1:82", "[::]:81"]);
    assert_eq!(at(&["localhost:80"]), ["127.0.0.1:80", "[::1]:80"]);
    assert_eq!(at(&["*:80", "db:80"]), ["[::]:80"]);
    assert_eq!(at(&[]), Vec::<String>::new());
}

#[test]
fn only_networks_that_are_not_there_already_are_routed() {
    let of = |texts: &[&str]| routes(&list(texts)).len();
    assert_eq!(of(&["127.0.0.1:1", "localhost:1", "[::1]:1", "db:1"]), 0);
    assert_eq!(of(&["*:1", "10.0.0.0/8:1", "10.0.0.0/8:2"]), 3);
}

#[test]
fn a_list_has_bounds() {
    assert_eq!(check(&list(&["db:1-256"])), Ok(()));
    assert!(check(&list(&["db:1-256", "db:300"])).unwrap_err().contains("257 ports"));
    assert!(check(&list(&["*:1-256", "db:300"])).unwrap_err().contains("257 ports"));
    let many: Vec<_> = (1..=33).map(|port| format!("db:{port}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(check(&list(&many)).unwrap_err().contains("33 destinations"));
}

#[test]
fn a_policy_covers_what_is_part_of_it() {
    let covers =
        |policy: &str, wanted: &str| policy.parse::<Destination>().unwrap().covers(&wanted.parse().unwrap());
    for (policy, wanted) in [
        ("db:1-9", "db:3"),
        ("10.0.0.0/8:80", "10.2.0.0/16:80"),
        ("10.0.0.0/8:80", "10.2.0.7:80"),
        ("*:80", "db:80"),
        ("*:80", "[2001:db8::/32]:80"),
    ] {
        assert!(covers(policy, wanted), "{policy} {wanted}");
        assert!(!covers(wanted, policy), "{wanted} {policy}");
    }
    for (policy, wanted) in
        [("db:80", "db:80-81"), ("db:80", "da:80"), ("*:80", "localhost:80"), ("*:80", "169.254.169.254:80")]
    {
        assert!(!covers(policy, wanted), "{policy} {wanted}");
    }
}

#[test]
fn what_needs_more_than_loopback_is_found() {
    let needs = |texts: &[&str]| needs_network(&list(texts)).map(ToString::to_string);
    assert_eq!(needs(&["localhost:1", "127.0.0.1:2", "[::1]:3"]), None);
    assert_eq!(needs(&["localhost:1", "db:2"]), Some("db:2".into()));
}
