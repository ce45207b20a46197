//! The cluster as the client knows it: the newest map, which node each key belongs to, and the nodes.

mod connect;
mod holder;
mod node;
mod routing;
mod split;

pub(crate) use self::{
    connect::connect,
    holder::{Holder, Redirect},
    node::{Node, describe, is_denied, was_never_sent},
    routing::{MapVersion, Router, Routing},
    split::{Share, split},
};
