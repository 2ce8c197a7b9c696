/** Time zones to choose from, each with what its clocks show now. */
const names: string[] = typeof Intl.supportedValuesOf === 'function' ? Intl.supportedValuesOf('timeZone') : []

function offset(zone: string): string {
  try {
    const parts = new Intl.DateTimeFormat('en', { timeZone: zone, timeZoneName: 'longOffset' }).formatToParts(new Date())
    return parts.find((part) => part.type === 'timeZoneName')?.value ?? ''
  } catch {
    return ''
  }
}

const all = [...new Set(['UTC', Intl.DateTimeFormat().resolvedOptions().timeZone, ...names])]
  .filter(Boolean)
  .map((id) => ({ id, label: id.replaceAll('_', ' '), get note() { return offset(id) } }))

/** All that the browser knows, and the one that is set: services know old names that browsers leave out. */
export const zonesWith = (set: string) => (all.some(({ id }) => id === set) ? all : [{ id: set, label: set.replaceAll('_', ' '), note: offset(set) }, ...all])
