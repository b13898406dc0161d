//! The integration tests: one binary, one file for each part of the contract.

mod architecture;
mod command_line;
mod configuration;
mod crashes;
mod endings;
mod faithful;
mod faults;
mod grpc;
mod histories;
mod interrupting;
mod leases;
mod leaving;
mod line;
mod model;
mod offers;
mod reloading;
mod replicas;
mod road;
mod sessions;
mod stopping;
mod store_contract;
mod storm;
mod support;
mod tunnels;
mod unprotected;
mod upstreams;
