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

export const zones = [...new Set(['UTC', Intl.DateTimeFormat().resolvedOptions().timeZone, ...names])]
  .filter(Boolean)
  .map((id) => ({ id, label: id.replaceAll('_', ' '), get note() { return offset(id) } }))
