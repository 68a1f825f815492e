//! What is offered, discovery, and health.

use engine::process::Brand;
use serde_json::{Value, json};

use super::error::{ApiError, Version, json_response};
use super::request::Request;
use super::routes::Reply;
use crate::app::App;
use crate::config::minor;
use crate::hosts;
use crate::instance::layout::{Layout, Mode, REPLICAS, STANDBYS};
use crate::refusal::Refusal;

/// Sizes of clusters in GB, and how many shards DCS gives each.
const CLUSTERS: [(i64, u16); 7] = [(4, 3), (8, 3), (16, 3), (24, 3), (32, 4), (48, 6), (64, 8)];

/// A size that can be created.
#[derive(Debug, Clone)]
pub struct Flavor {
    /// Its name.
    pub spec_code: String,
    /// `maxmemory` in MiB, of all shards together.
    pub capacity_mb: i64,
    /// Of how many nodes; a cluster may be created with another number of shards.
    pub layout: Layout,
}

impl Flavor {
    /// All of them: the sizes that DCS has for single-node instances, the same for primaries with one to four replicas, and its
    /// clusters with one to five copies of the data.
    pub fn all() -> Vec<Flavor> {
        let tiny = [128, 256, 512].map(|mb| (format!("tiny.#{mb}"), mb));
        let large = [1, 2, 4, 8, 16, 24, 32, 48, 64].map(|gb| (format!("large.#{gb}"), gb * 1024));
        let sizes: Vec<(String, i64)> = tiny.into_iter().chain(large).collect();
        let singles = sizes.iter().map(|(size, capacity_mb)| Flavor {
            spec_code: format!("redis.single.xu1.{}", size.replace('#', "")),
            capacity_mb: *capacity_mb,
            layout: Layout::SINGLE,
        });
        let watched = STANDBYS.flat_map(|replicas| {
            sizes.iter().map(move |(size, capacity_mb)| Flavor {
                spec_code: format!(
                    "redis.ha.xu1.{}",
                    size.replace('#', &format!("r{}.", 1 + replicas))
                ),
                capacity_mb: *capacity_mb,
                layout: Layout {
                    mode: Mode::Ha,
                    shards: 1,
                    replicas,
                },
            })
        });
        let clusters = REPLICAS.flat_map(|replicas| {
            CLUSTERS.map(|(gb, shards)| Flavor {
                spec_code: format!("redis.cluster.xu1.large.r{}.{gb}", 1 + replicas),
                capacity_mb: gb * 1024,
                layout: Layout {
                    mode: Mode::Cluster,
                    shards,
                    replicas,
                },
            })
        });
        singles.chain(watched).chain(clusters).collect()
    }

    /// The flavor of that name; Terraform's two-character suffix on v1.0 is ignored.
    pub fn find(spec: &str) -> Option<Flavor> {
        Self::all()
            .into_iter()
            .find(|flavor| flavor.spec_code == spec || format!("{}-h", flavor.spec_code) == spec)
    }

    /// The one of so many GB, of an instance with these nodes.
    pub fn of_size(capacity: f64, layout: Layout) -> Option<Flavor> {
        let has_nodes =
            |flavor: &Flavor| (flavor.layout.mode, flavor.layout.replicas) == (layout.mode, layout.replicas);
        Self::all()
            .into_iter()
            .find(|flavor| has_nodes(flavor) && flavor.is_of_size(capacity))
    }

    /// Whether it is of so many GB.
    pub fn is_of_size(&self, capacity: f64) -> bool {
        // The text "NaN" reads as a number too, and is the capacity of nothing.
        (capacity * 1024.0 - self.capacity_mb as f64).abs() <= 1.0
    }

    /// The capacity in GB as DCS writes it.
    pub fn capacity(&self) -> String {
        if self.capacity_mb >= 1024 {
            (self.capacity_mb / 1024).to_string()
        } else {
            format!("{}", self.capacity_mb as f64 / 1024.0)
        }
    }
}

/// The engine that is asked for by brand and version, in words that name any of these: `redis`, `valkey`; `7.0`, `7.0.15`,
/// and where versions alone do not tell, `valkey-8.1`. DCS knows no other brand than Redis, so that means any.
///
/// # Errors
/// [`Refusal::EngineUnsupported`], [`Refusal::EngineVersionUnsupported`].
pub fn engine(app: &App, brand: &str, version: Option<&str>) -> Result<(Brand, String), Refusal> {
    let brand = match Brand::from_word(brand) {
        None => return Err(Refusal::EngineUnsupported),
        Some(Brand::Valkey) if app.config.strict_dcs => return Err(Refusal::EngineUnsupported),
        Some(Brand::Redis) => None,
        Some(Brand::Valkey) => Some(Brand::Valkey),
    };
    let is_version = |(brand, whole): &(Brand, String)| {
        let minor = minor(whole);
        let named = format!("{}-{minor}", brand.word());
        version.is_none_or(|asked| [whole, &minor, &named].contains(&&asked.to_lowercase()))
    };
    let of_brand = |engine: &(Brand, String)| brand.is_none_or(|brand| brand == engine.0);
    let mut all = hosts::engines(app)?.into_iter().filter(of_brand);
    all.find(is_version).ok_or(match version {
        None => Refusal::EngineUnsupported,
        Some(_) => Refusal::EngineVersionUnsupported,
    })
}

/// The versions that can be asked for with nodes in this mode, each once: `7.0`.
fn offered_versions(engines: &[(Brand, String)], mode: Mode) -> Vec<String> {
    let mut versions = Vec::new();
    for (_, version) in engines {
        let version = version.as_str();
        if mode.obstacle_of(version).is_some() {
            continue;
        }
        let minor = minor(version);
        if !versions.contains(&minor) {
            versions.push(minor);
        }
    }
    versions
}

/// What DCS tells of a flavor by name and value.
fn attributes(flavor: &Flavor) -> Value {
    match flavor.layout.mode {
        Mode::Single | Mode::Ha => json!([]),
        Mode::Cluster => json!([{"capacity": flavor.capacity(), "name": "sharding_num",
                                 "value": flavor.layout.shards.to_string()}]),
    }
}

/// `GET …/flavors`
///
/// # Errors
/// None.
pub fn flavors(request: &Request) -> Result<Reply, ApiError> {
    let engines = hosts::engines(&request.app)?;
    let zone = &request.app.config.region;
    let wanted = |name: &str, value: &str| {
        request
            .query(name)
            .is_none_or(|asked| asked.eq_ignore_ascii_case(value))
    };
    let offered: Vec<Value> = Flavor::all()
        .iter()
        .map(|flavor| (flavor, offered_versions(&engines, flavor.layout.mode)))
        .filter(|(flavor, versions)| {
            wanted("spec_code", &flavor.spec_code)
                && wanted("capacity", &flavor.capacity())
                && wanted("cache_mode", flavor.layout.mode.word())
                && wanted("engine", "redis")
                && versions.iter().any(|version| wanted("engine_version", version))
                && wanted("cpu_type", "x86_64")
        })
        .map(|(flavor, versions)| {
            json!({
                "spec_code": flavor.spec_code, "cache_mode": flavor.layout.mode.word(), "engine": "redis",
                "engine_version": versions.join(";"),
                "product_type": "generic", "cpu_type": "x86_64", "storage_type": "DRAM",
                "capacity": [flavor.capacity()], "billing_mode": ["Hourly"], "tenant_ip_count": 1,
                "replica_count": 1 + flavor.layout.replicas, "pricing_type": "tier", "is_dec": false,
                "attrs": attributes(flavor),
                "flavors_available_zones": [{"capacity": flavor.capacity(), "unit": "GB",
                    "az_codes": [zone], "available_zones": [zone]}],
            })
        })
        .collect();
    Ok(json_response(200, &json!({ "flavors": offered })))
}

/// `GET /v1.0/products`
///
/// # Errors
/// None.
pub fn products(request: &Request) -> Result<Reply, ApiError> {
    let engines = hosts::engines(&request.app)?;
    let offered: Vec<Value> = Flavor::all()
        .iter()
        .map(|flavor| (flavor, offered_versions(&engines, flavor.layout.mode).join(";")))
        .filter(|(_, versions)| !versions.is_empty())
        .map(|(flavor, versions)| {
            json!({
                "product_id": flavor.spec_code, "spec_code": flavor.spec_code, "cache_mode": flavor.layout.mode.word(),
                "engine": "redis", "engine_versions": versions, "product_type": "generic", "cpu_type": "x86_64", "storage_type": "DRAM",
                "spec_details": "[]", "currency": "", "charging_type": "Hourly", "prod_type": flavor.layout.mode.word(),
            })
        })
        .collect();
    Ok(json_response(200, &json!({ "products": offered })))
}

/// `GET /v2/available-zones`, `GET /v1.0/availableZones`
///
/// # Errors
/// None.
pub fn zones(request: &Request) -> Result<Reply, ApiError> {
    let region = &request.app.config.region;
    let zones = json!([{"id": region, "code": region, "name": region, "port": "8635", "resource_availability": "true"}]);
    let name = if request.version == Version::V1 {
        "regionId"
    } else {
        "region_id"
    };
    Ok(json_response(
        200,
        &json!({name: region, "available_zones": zones}),
    ))
}

/// `GET /`
///
/// # Errors
/// None.
pub fn versions(request: &Request) -> Result<Reply, ApiError> {
    let base = &request.base();
    Ok(json_response(
        200,
        &json!({"versions": [version_entry(base, "v1.0", "DEPRECATED"), version_entry(base, "v2", "CURRENT")]}),
    ))
}

/// `GET /v2`
///
/// # Errors
/// None.
pub fn version_2(request: &Request) -> Result<Reply, ApiError> {
    Ok(json_response(
        200,
        &json!({"version": version_entry(&request.base(), "v2", "CURRENT")}),
    ))
}

/// `GET /v1.0`
///
/// # Errors
/// None.
pub fn version_1(request: &Request) -> Result<Reply, ApiError> {
    Ok(json_response(
        200,
        &json!({"version": version_entry(&request.base(), "v1.0", "DEPRECATED")}),
    ))
}

fn version_entry(base: &str, id: &str, status: &str) -> Value {
    json!({"id": id, "links": [{"href": format!("{base}/{id}/"), "rel": "self"}], "min_version": "",
           "status": status, "updated": "2026-11-23T00:00:00Z", "version": ""})
}

/// `GET /healthz`: the process answers.
///
/// # Errors
/// None.
pub fn healthy(_request: &Request) -> Result<Reply, ApiError> {
    Ok(json_response(200, &json!({"status": "ok"})))
}

/// `GET /readyz`: the catalogue can be read and the store is there.
///
/// # Errors
/// 503 otherwise.
pub fn ready(request: &Request) -> Result<Reply, ApiError> {
    let catalog = request.app.catalog.is_readable();
    let store = request.app.config.store_dir().is_dir();
    let status = if catalog && store { 200 } else { 503 };
    Ok(json_response(
        status,
        &json!({"catalog": catalog, "store": store}),
    ))
}
