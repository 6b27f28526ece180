// Short names for what is generated in gen/ from the contract, of the world `resident`.
#pragma once

#include "gen/resident.h"

typedef resident_list_u8_t bytes;
typedef statehouse_machine_types_lease_end_t lease_end;
typedef exports_statehouse_machine_behavior_context_t context;
typedef exports_statehouse_machine_behavior_input_t input;
typedef exports_statehouse_machine_behavior_view_t view;
typedef exports_statehouse_machine_behavior_refusal_t refusal;

#define bytes_free resident_list_u8_free
#define input_free exports_statehouse_machine_behavior_input_free
#define apply exports_statehouse_machine_behavior_apply
#define query exports_statehouse_machine_behavior_query
#define save exports_statehouse_machine_snapshot_save
#define restore exports_statehouse_machine_snapshot_restore
