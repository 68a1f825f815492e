//! Calls the API of a service as its admin.json says, signed with its access key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::Global;
use crate::ids::Moment;
use crate::secrets::{hex, sha256};
use signature::{ALGORITHM, Signed, canonical_request, string_to_sign};

/// The JSON of a file with credentials.
fn read(path: &Path, admin: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| {
        if path == admin {
            format!(
                "cannot read {}: start the service with `cachekeep serve`, or name its --data-dir",
                path.display()
            )
        } else {
            format!(
                "cannot read {}: `cachekeep key create --project NAME -o json` prints such a file",
                path.display()
            )
        }
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not whole", path.display()))
}

/// A service and our credential for it.
pub(crate) struct Client {
    agent: ureq::Agent,
    endpoint: String,
    project_id: String,
    ak: String,
    sk: String,
    /// Where the credential is from, for who has to put it right.
    from: PathBuf,
}

impl Client {
    /// Reads `<data-dir>/admin.json`, or the file of `--credentials`; where that names no endpoint, the one of
    /// admin.json is meant.
    ///
    /// # Errors
    /// A file is not there or not whole.
    pub(crate) fn find(global: &Global) -> anyhow::Result<Self> {
        let admin = global.data_dir().join("admin.json");
        let path = global.credentials.as_ref().unwrap_or(&admin);
        let known = read(path, &admin)?;
        let field = |name: &str| {
            let value = known[name].as_str().map(str::to_owned);
            value.with_context(|| format!("{} has no {name}", path.display()))
        };
        let endpoint = match known["endpoint"].as_str() {
            Some(endpoint) => endpoint.to_owned(),
            None => read(&admin, &admin)?["endpoint"]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("{} has no endpoint", admin.display()))?,
        };
        // On this machine there is nobody in between; elsewhere the certificate must hold.
        let here =
            endpoint.contains("//127.") || endpoint.contains("//[::1]") || endpoint.contains("//localhost");
        let tls = ureq::tls::TlsConfig::builder()
            .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(ureq::tls::RootCerts::PlatformVerifier)
            .disable_verification(here)
            .build();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_connect(Some(Duration::from_secs(5)))
            .tls_config(tls)
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint,
            project_id: field("project_id")?,
            ak: field("ak")?,
            sk: field("sk")?,
            from: path.clone(),
        })
    }

    /// Calls `<version>/{project}<path>` and returns the JSON of a success, null where there is none.
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn call(
        &self,
        method: &str,
        version: &str,
        path: &str,
        query: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let path = format!("/{version}/{}{path}", self.project_id);
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let date = Moment::now().compact();
        let date = format!("{}T{}Z", &date[..8], &date[8..]);
        let payload_hash = hex(&sha256(bytes.as_bytes()));
        let signed = Signed {
            method,
            path: &path,
            query,
            headers: vec![("x-sdk-date", date.clone())],
            payload_hash: &payload_hash,
        };
        let text = string_to_sign(&date, &canonical_request(&signed));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.sk.as_bytes());
        let signature = hex(ring::hmac::sign(&key, text.as_bytes()).as_ref());
        let authorization = format!(
            "{ALGORITHM} Access={}, SignedHeaders=x-sdk-date, Signature={signature}",
            self.ak
        );
        let separator = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{path}{separator}{query}", self.endpoint);
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(&url)
            .header("X-Sdk-Date", &date)
            .header("Authorization", &authorization)
            .header("Content-Type", "application/json")
            .body(bytes)?;
        let mut response = self.agent.run(request).with_context(|| {
            format!(
                "no answer from {}, where {} says that the service is: `cachekeep serve` starts it",
                self.endpoint,
                self.from.display()
            )
        })?;
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .read_to_string()
            .context("the answer broke off")?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let code = value["error_code"].as_str().unwrap_or("no code");
        let message = value["error_msg"].as_str().unwrap_or(&text);
        let advice = match status {
            401 => format!(
                ". The access key in {} is not accepted: `cachekeep key list` shows those that are, `cachekeep key create` makes \
                 another one",
                self.from.display()
            ),
            _ => String::new(),
        };
        anyhow::bail!("{message} ({code}, HTTP {status}){advice}")
    }

    /// Opens a link and returns its bytes as a reader, and how many there will be.
    ///
    /// # Errors
    /// The service does not answer or refuses.
    pub(crate) fn open(&self, link: &str) -> anyhow::Result<(u64, impl std::io::Read + use<>)> {
        let response = self.agent.get(link).call().context("the link does not answer")?;
        anyhow::ensure!(
            response.status() == 200,
            "the link answers HTTP {}",
            response.status()
        );
        let length = response
            .headers()
            .get("content-length")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Ok((length.unwrap_or(0), response.into_body().into_reader()))
    }
}
