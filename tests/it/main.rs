//! The integration tests: one binary, one file for each part of the contract.

mod architecture;
mod command_line;
mod configuration;
mod endings;
mod faults;
mod leases;
mod model;
mod replicas;
mod road;
mod sessions;
mod store_contract;
mod support;
