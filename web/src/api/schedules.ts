/** Distributions and exports at a time, or again and again. */
import { api, body, type Schemas } from './client'

export type NewSchedule = Schemas['NewSchedule']
export type Schedule = Schemas['Schedule']

const at = (id: string) => ({ params: { path: { id } } })

export const schedules = {
  list: (cursor?: string) => body(api.GET('/v1/schedules', { params: { query: { cursor } } })),
  get: (id: string) => body(api.GET('/v1/schedules/{id}', at(id))),
  create: (schedule: NewSchedule) => body(api.POST('/v1/schedules', { body: schedule })),
  change: (id: string, change: Schemas['ScheduleChange']) => body(api.PATCH('/v1/schedules/{id}', { ...at(id), body: change })),
  remove: (id: string) => body(api.DELETE('/v1/schedules/{id}', at(id))),
  next: (id: string) => body(api.GET('/v1/schedules/{id}/next', { params: { path: { id }, query: { n: 10 } } })),
  run: (id: string) => body(api.POST('/v1/schedules/{id}/run', at(id))),
}
