//! The bytes on the drive and the planner's decisions: no mount, no files.

mod catalog_format;
mod layers;
mod plan_properties;
mod record_format;
