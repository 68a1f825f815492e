//! Nodes and groups of instances on the wire: contract §9.4.

use engine::discover::{Found, HostPort};
use serde_json::{Value, json};

use super::error::{ApiError, json_response};
use super::page;
use super::request::Request;
use super::routes::Reply;
use crate::instance::generation::{self, Generation};
use crate::instance::layout::{Mode, Place};
use crate::instance::nodes::{self as living, Role};
use crate::instance::{Instance, Status, command, record};
use crate::limits;

/// A node as its engine says.
struct Node<'a> {
    place: &'a Place,
    /// `None`: it does not answer.
    role: Option<Role>,
}

impl Node<'_> {
    fn status(&self) -> &'static str {
        match self.role {
            Some(_) => "Active",
            None => "Inactive",
        }
    }

    /// What nobody can say is told as what it was made to be.
    fn is_primary(&self, nodes: &[Node<'_>]) -> bool {
        let of_shard = || nodes.iter().filter(|other| other.place.shard == self.place.shard);
        match self.role {
            Some(role) => role == Role::Primary,
            None if of_shard().any(|other| other.role == Some(Role::Primary)) => false,
            None => of_shard()
                .next()
                .is_some_and(|first| first.place.id == self.place.id),
        }
    }
}

fn look<'a>(request: &Request, instance: &Instance, generation: &'a Generation) -> Vec<Node<'a>> {
    let mut nodes: Vec<Node<'a>> = Vec::new();
    // Of engines that another host runs it is told what they were made to be.
    let is_elsewhere = instance.host.as_ref() != Some(&request.app.host);
    for place in &generation.nodes {
        let is_first = nodes.iter().all(|node| node.place.shard != place.shard);
        let role = match (is_elsewhere, instance.status, is_first) {
            (false, _, _) => living::role(&request.app, instance, generation, place),
            (true, Status::Running, true) => Some(Role::Primary),
            (true, Status::Running, false) => Some(Role::Replica),
            (true, _, _) => None,
        };
        nodes.push(Node { place, role });
    }
    nodes
}

/// Stays the same for the nodes of a shard, whichever generation they are of.
fn group_id(instance: &Instance, shard: u16) -> String {
    format!("{}-{shard}", instance.id)
}

fn group_name(shard: u16) -> String {
    format!("group-{shard}")
}

/// A node's own address where it has one: clients come in at the instance's, whoever has that.
fn ip<'a>(instance: &'a Instance, place: &'a Place) -> &'a str {
    place.address.as_deref().unwrap_or(&instance.bind)
}

fn node_shown(request: &Request, instance: &Instance, node: &Node<'_>, nodes: &[Node<'_>]) -> Value {
    let role = if node.is_primary(nodes) { "master" } else { "slave" };
    let kind = node_type(instance);
    json!({
        "logical_node_id": node.place.id.as_str(), "node_id": node.place.id.as_str(),
        "name": format!("{}-{}", group_name(node.place.shard), node.place.port), "status": node.status(),
        "az_code": request.app.config.region, "node_role": role, "node_type": kind, "node_ip": ip(instance, node.place),
        "node_port": node.place.port.to_string(), "priority_weight": Value::Null,
        "is_access": node.role.is_some(), "group_id": group_id(instance, node.place.shard),
        "group_name": group_name(node.place.shard), "is_remove_ip": false,
        "replication_id": node.place.id.as_str(), "dimensions": Value::Null,
    })
}

/// A node of servers that somebody else runs, as it was found last.
struct Attached<'a> {
    shard: u16,
    at: &'a HostPort,
    is_primary: bool,
    is_up: bool,
}

fn attached_nodes(found: &Found) -> Vec<Attached<'_>> {
    let mut nodes = Vec::new();
    for (shard, of) in (0..).zip(&found.shards) {
        nodes.push(Attached {
            shard,
            at: &of.primary,
            is_primary: true,
            is_up: true,
        });
        nodes.extend(of.replicas.iter().map(|replica| Attached {
            shard,
            at: &replica.at,
            is_primary: false,
            is_up: replica.amiss.is_none(),
        }));
    }
    nodes
}

fn attached_shown(request: &Request, instance: &Instance, node: &Attached<'_>, of_instance: bool) -> Value {
    let (role, at) = (if node.is_primary { "master" } else { "slave" }, node.at);
    let status = if node.is_up { "Active" } else { "Inactive" };
    let id = at.to_string();
    if of_instance {
        return json!({
            "logical_node_id": id, "node_id": id, "name": format!("{}-{}", group_name(node.shard), at.port),
            "status": status, "az_code": request.app.config.region, "node_role": role, "node_type": node_type(instance),
            "node_ip": at.host, "node_port": at.port.to_string(), "priority_weight": Value::Null, "is_access": node.is_up,
            "group_id": group_id(instance, node.shard), "group_name": group_name(node.shard), "is_remove_ip": false,
            "replication_id": id, "dimensions": Value::Null,
        });
    }
    json!({"replication_role": role, "replication_ip": at.host, "replication_id": id, "node_id": id, "status": status,
           "az_code": request.app.config.region, "is_replication": !node.is_primary, "dimensions": []})
}

fn node_type(instance: &Instance) -> &'static str {
    match instance.layout.mode {
        Mode::Single | Mode::Ha => "redis",
        Mode::Cluster => "redis_cluster",
    }
}

fn all_shown(request: &Request, instance: &Instance, generation: Option<&Generation>) -> Vec<Value> {
    if let Some(attached) = &instance.attachment {
        let nodes = attached_nodes(&attached.found);
        return nodes
            .iter()
            .map(|node| attached_shown(request, instance, node, true))
            .collect();
    }
    let nodes = generation
        .map(|found| look(request, instance, found))
        .unwrap_or_default();
    nodes
        .iter()
        .map(|node| node_shown(request, instance, node, &nodes))
        .collect()
}

/// `GET …/instances/{instance_id}/logical-nodes`
///
/// # Errors
/// Malformed or unknown instance.
pub fn nodes(request: &Request) -> Result<Reply, ApiError> {
    let (instance, generation) = find(request)?;
    let nodes = all_shown(request, &instance, generation.as_ref());
    Ok(json_response(
        200,
        &json!({"instance_id": instance.id.as_str(), "total": nodes.len(), "nodes": nodes}),
    ))
}

fn find(request: &Request) -> Result<(Instance, Option<Generation>), ApiError> {
    let (id, project) = (request.instance_id()?, request.project()?);
    Ok(request.app.catalog.read(|tx| {
        let instance = command::find(tx, project, &id)?;
        let generation = generation::serving(tx, &instance.id)?;
        Ok::<_, crate::refusal::Refusal>(((*instance).clone(), generation))
    })?)
}

/// `GET …/instances-logical-nodes`: a page of instances, each with its nodes.
///
/// # Errors
/// Paging parameters.
pub fn nodes_of_all(request: &Request) -> Result<Reply, ApiError> {
    let page = page::page(request, limits::PAGE_ROWS_DEFAULT)?;
    let project = request.project()?;
    let first = usize::try_from(page.offset).unwrap_or(usize::MAX);
    let count = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let (total, shown) = request.app.catalog.read(|tx| {
        let all = record::list(tx, project)?;
        let total = all.len();
        let mut shown = Vec::new();
        for instance in all.into_iter().skip(first).take(count) {
            let generation = generation::serving(tx, &instance.id)?;
            shown.push((instance, generation));
        }
        Ok::<_, crate::catalog::Error>((total, shown))
    })?;
    // Outside of the transaction: an engine may be slow to answer.
    let instances: Vec<Value> = shown
        .iter()
        .map(|(instance, generation)| {
            let nodes = all_shown(request, instance, generation.as_ref());
            json!({"instance_id": instance.id.as_str(), "node_count": nodes.len(), "nodes": nodes})
        })
        .collect();
    Ok(json_response(
        200,
        &json!({"count": total, "instances": instances}),
    ))
}

/// `GET …/instance/{instance_id}/groups`
///
/// # Errors
/// Malformed or unknown instance.
pub fn groups(request: &Request) -> Result<Reply, ApiError> {
    let (instance, generation) = find(request)?;
    if let Some(attached) = &instance.attachment {
        let nodes = attached_nodes(&attached.found);
        let groups: Vec<Value> = (0..instance.layout.shards)
            .map(|shard| {
                let of_shard = nodes.iter().filter(|node| node.shard == shard);
                let replication: Vec<Value> = of_shard
                    .map(|node| attached_shown(request, &instance, node, false))
                    .collect();
                json!({"group_id": group_id(&instance, shard), "group_name": group_name(shard),
                       "replication_list": replication})
            })
            .collect();
        return Ok(json_response(
            200,
            &json!({"group_count": groups.len(), "group_list": groups}),
        ));
    }
    let nodes = generation
        .as_ref()
        .map(|found| look(request, &instance, found))
        .unwrap_or_default();
    let shards = if nodes.is_empty() {
        0
    } else {
        instance.layout.shards
    };
    let groups: Vec<Value> =
        (0..shards)
            .map(|shard| {
                let of_shard = nodes.iter().filter(|node| node.place.shard == shard);
                let replication: Vec<Value> = of_shard
                .map(|node| {
                    let role = if node.is_primary(&nodes) { "master" } else { "slave" };
                    let id = node.place.id.as_str();
                    json!({"replication_role": role, "replication_ip": ip(&instance, node.place), "replication_id": id,
                           "node_id": id, "status": node.status(), "az_code": request.app.config.region,
                           "is_replication": role == "slave", "dimensions": []})
                })
                .collect();
                json!({"group_id": group_id(&instance, shard), "group_name": group_name(shard),
                   "replication_list": replication})
            })
            .collect();
    Ok(json_response(
        200,
        &json!({"group_count": shards, "group_list": groups}),
    ))
}
