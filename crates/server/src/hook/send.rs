//! One delivery: a request as the Standard Webhooks specification has it (standardwebhooks.com), or a run of a program.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::record::{Delivery, Kind};
use crate::ids::Moment;

/// Whoever takes a delivery has to say so within this time; what he does of it he does afterwards.
const TIME_MAX: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);
/// Of what is answered so much is kept for who looks why it failed.
const ANSWER_BYTES_MAX: usize = 500;
/// What secrets of this form begin with.
const SECRET_PREFIX: &str = "whsec_";

/// What is told.
pub struct Message {
    /// The same for each try, and for nothing else.
    pub id: String,
    event: String,
    body: String,
}

impl Message {
    /// What a delivery tells. Its form is our own: what has ended is looked up by its id.
    pub fn new(delivery: &Delivery) -> Self {
        let id = format!("{}:{}:{}", delivery.event, delivery.subject_id, delivery.at.0);
        let subject = match delivery.event.split('.').next().unwrap_or_default() {
            "drill" => "schedule",
            subject => subject,
        };
        let mut data = json!({
            "project_id": delivery.project_id, "instance_id": delivery.instance_id, "instance_name": delivery.instance_name,
        });
        data[format!("{subject}_id")] = json!(delivery.subject_id);
        if let Some(code) = &delivery.error_code {
            data["error_code"] = json!(code);
        }
        if let Some(failure) = &delivery.failure {
            data["failure"] = json!(failure);
        }
        let body = json!({"id": id, "type": delivery.event, "timestamp": delivery.at.iso(), "data": data});
        Self {
            id,
            event: delivery.event.clone(),
            body: body.to_string(),
        }
    }

    /// One that says nothing, to see that it arrives.
    pub fn test(now: Moment) -> Self {
        let id = format!("{}::{}", super::TEST, now.0);
        let body = json!({"id": id, "type": super::TEST, "timestamp": now.iso(), "data": {}});
        Self {
            id,
            event: super::TEST.to_owned(),
            body: body.to_string(),
        }
    }
}

/// Tells it.
///
/// # Errors
/// Why it was not taken: no answer or one other than 2xx, an exit status other than 0.
pub fn send(kind: Kind, target: &str, secret: &str, message: &Message, now: Moment) -> Result<(), String> {
    match kind {
        Kind::Url => post(target, secret, message, now),
        Kind::Program => run(target, message),
    }
}

/// `v1,` and HMAC-SHA256 in base64 of id, time and body.
fn signature(secret: &str, id: &str, seconds: i64, body: &str) -> String {
    let key = STANDARD
        .decode(secret.trim_start_matches(SECRET_PREFIX))
        .unwrap_or_default();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let tag = ring::hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag.as_ref()))
}

fn post(url: &str, secret: &str, message: &Message, now: Moment) -> Result<(), String> {
    let tls = ureq::tls::TlsConfig::builder()
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(ureq::tls::RootCerts::PlatformVerifier)
        .build();
    // A redirect would take the news, and its signature, to somebody whom the operator did not name.
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(TIME_MAX))
        .tls_config(tls)
        .build();
    let seconds = now.0.div_euclid(1000);
    let answered = ureq::Agent::new_with_config(config)
        .post(url)
        .header("content-type", "application/json")
        .header("user-agent", format!("cachekeep/{}", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", seconds.to_string())
        .header(
            "webhook-signature",
            signature(secret, &message.id, seconds, &message.body),
        )
        .send(&message.body);
    let mut answer = answered.map_err(|error| format!("no answer: {error}"))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX as u64);
    let said = said.read_to_string().unwrap_or_default();
    Err(format!("it answered {}: {}", status.as_u16(), said.trim()))
}

/// The event on standard input, its name and id in the environment; done is what exits with 0.
fn run(program: &str, message: &Message) -> Result<(), String> {
    let output = tempfile().map_err(|error| format!("no room for what it prints: {error}"))?;
    let printed = || output.try_clone().map(Stdio::from).unwrap_or(Stdio::null());
    // Nothing of ours: keys and passwords may be given to us that way.
    let few = ["PATH", "HOME", "LANG", "TZ"].map(|name| (name, std::env::var_os(name)));
    let kept = few.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let mut child = Command::new(program)
        .env_clear()
        .envs(kept)
        .env("CACHEKEEP_EVENT", &message.event)
        .env("CACHEKEEP_EVENT_ID", &message.id)
        .stdin(Stdio::piped())
        .stdout(printed())
        .stderr(printed())
        .spawn()
        .map_err(|error| format!("{program} does not run: {error}"))?;
    if let Some(mut input) = child.stdin.take() {
        // Less than a pipe holds; who does not read it ends all the same.
        let _unread = input.write_all(message.body.as_bytes());
    }
    let until = Instant::now() + TIME_MAX;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(POLL),
            Ok(None) => {
                let _gone = child.kill();
                let _reaped = child.wait();
                return Err(format!("it did not end within {} seconds", TIME_MAX.as_secs()));
            }
            Err(error) => return Err(format!("it cannot be waited for: {error}")),
        }
    };
    if ended.success() {
        return Ok(());
    }
    Err(format!("{ended}: {}", beginning(output).trim()))
}

/// A file without a name: what a program prints there keeps nobody waiting, as a pipe would that a child of it holds open.
fn tempfile() -> std::io::Result<std::fs::File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    Ok(memfd_create("cachekeep-hook", MemfdFlags::CLOEXEC)?.into())
}

fn beginning(mut output: std::fs::File) -> String {
    use std::io::{Seek as _, SeekFrom};
    let mut said = Vec::new();
    let read = output
        .seek(SeekFrom::Start(0))
        .and_then(|_| output.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut said));
    match read {
        Ok(_) => String::from_utf8_lossy(&said).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::signature;

    /// The example of the specification's own libraries.
    #[test]
    fn a_signature_is_the_one_of_the_specification() {
        let told = signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            "{\"test\": 2432232314}",
        );
        assert_eq!(told, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
