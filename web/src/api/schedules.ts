/** Distributions and exports at a time, or again and again. */
import { api, body, type Schemas } from './client'

export type NewSchedule = Schemas['NewSchedule']
export type When = Schemas['SchedulePreviewRequest']
/** A null in a body means absent: what is emptied is named. */
export type ScheduleChange = Schemas['ScheduleChange']

const at = (id: string) => ({ params: { path: { id } } })

export const schedules = {
  list: (cursor?: string) => body(api.GET('/v1/schedules', { params: { query: { cursor } } })),
  get: (id: string) => body(api.GET('/v1/schedules/{id}', at(id))),
  create: (schedule: NewSchedule) => body(api.POST('/v1/schedules', { body: schedule })),
  change: (id: string, change: ScheduleChange) => body(api.PATCH('/v1/schedules/{id}', { ...at(id), body: change })),
  remove: (id: string) => body(api.DELETE('/v1/schedules/{id}', at(id))),
  preview: (when: When) => body(api.POST('/v1/schedules/preview', { body: when })),
  run: (id: string) => body(api.POST('/v1/schedules/{id}/run', at(id))),
}
