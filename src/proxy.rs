//! The data plane: accepts TCP connections and UDP datagrams and relays them.

pub mod relay;
pub mod tcp;
pub mod udp;
