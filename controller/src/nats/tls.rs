//! An authority and a certificate for a broker whose owner gives none.

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// How long the authority holds. Its key is kept away; whoever wants another one begins anew.
const AUTHORITY_YEARS: i16 = 20;
/// How long a server's certificate holds: it is made anew by removing it and calling `sally nats init` again.
const SERVER_YEARS: i16 = 5;

/// A certificate cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate for {of}: {cause}")]
pub struct TlsError {
    of: String,
    cause: String,
}

fn failed(of: &str) -> impl Fn(rcgen::Error) -> TlsError {
    move |error| TlsError { of: of.to_owned(), cause: error.to_string() }
}

/// Makes a key; PEM.
///
/// # Errors
/// When the library cannot.
pub fn key() -> Result<String, TlsError> {
    Ok(KeyPair::generate().map_err(failed("a key"))?.serialize_pem())
}

/// The authority's certificate for this key; PEM.
///
/// # Errors
/// When the key is none.
pub fn authority(key: &str, name: &str) -> Result<String, TlsError> {
    let of = failed("the authority");
    let key = KeyPair::from_pem(key).map_err(&of)?;
    let params = authority_params(name).map_err(&of)?;
    Ok(params.self_signed(&key).map_err(of)?.pem())
}

/// A certificate for a server under these names and addresses, signed by the authority; PEM.
///
/// # Errors
/// When a key is none, or a name cannot stand in a certificate.
pub fn server(
    key: &str,
    hosts: &[String],
    authority_key: &str,
    authority_name: &str,
) -> Result<String, TlsError> {
    let names = hosts.join(", ");
    let of = failed(&names);
    let key = KeyPair::from_pem(key).map_err(&of)?;
    let authority_key = KeyPair::from_pem(authority_key).map_err(&of)?;
    // Its name and key are all that a certificate says of who signed it.
    let issuer = Issuer::new(authority_params(authority_name).map_err(&of)?, authority_key);
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(&of)?;
    params.distinguished_name.push(DnType::CommonName, hosts.first().map_or("broker", String::as_str));
    hold(&mut params, SERVER_YEARS);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(&key, &issuer).map_err(of)?.pem())
}

fn authority_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, format!("Sally broker authority {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    hold(&mut params, AUTHORITY_YEARS);
    Ok(params)
}

/// Sets for how long a certificate holds: from yesterday on, since clocks differ.
fn hold(params: &mut CertificateParams, years: i16) {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let first = today.yesterday().unwrap_or(today);
    let last = Date::new(first.year() + years, first.month(), 1).unwrap_or(first);
    let at = |date: Date| {
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    (params.not_before, params.not_after) = (at(first), at(last));
}

/// Whether a text can be a host's name or address in a certificate and in a URL.
pub fn is_host(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(part))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses() {
        for good in ["broker", "broker.example.net", "192.0.2.1", "2001:db8::1", "a-b.c"] {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "",
            "a b",
            "-a",
            "a-",
            "a..b",
            "a/b",
            "a\"b",
            "ü.example",
            "a:1",
            "*.example.net",
            &"a".repeat(64),
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn a_certificate_names_its_hosts_and_bad_keys_are_told() {
        let (authority_key, server_key) = (key().unwrap(), key().unwrap());
        let hosts = ["broker.example.net".to_owned(), "192.0.2.1".to_owned()];
        let pem = server(&server_key, &hosts, &authority_key, "x").unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(authority(&authority_key, "x").unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
        let error = server("no key", &hosts, &authority_key, "x").unwrap_err().to_string();
        assert!(error.contains("broker.example.net, 192.0.2.1"), "{error}");
    }
}
